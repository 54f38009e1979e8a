"""`dcli sweep`: how the jobs of a sweep stand; free of torch."""

from __future__ import annotations

import json
import os
import socket
from collections import Counter
from pathlib import Path
from typing import Any

from diffusion_cli import sweep
from diffusion_cli.errors import ConfigError
from diffusion_cli.registry import near


def run(settings: dict[str, Any], overrides: list[str]) -> None:
    """`status`, of one sweep or of all; `--json` for scripts."""
    plain = "--json" not in overrides
    verb, *words = [word for word in overrides if word != "--json"] or [""]
    if verb != "status":
        what = f"there is no `{verb}`{near(verb, ['status'])}" if verb else "status?"
        raise ConfigError(f"sweep: {what}", "dcli sweep status")
    if strange := [word for word in words if word.startswith("-")]:
        raise ConfigError(f"sweep status: `{strange[0]}`?", "dcli sweep --help")
    homes = [Path(word) for word in words] or sorted(sweep.HOME.glob("*/"))
    for home in homes:
        if not (home / "jobs").is_dir():
            message = f"sweep status: {home} holds no sweep"
            raise ConfigError(message, "dcli sweep status runs/sweeps/<one of them>")
    if not homes:
        raise ConfigError(f"sweep status: {sweep.HOME} is empty", "dcli train -m ...")
    if plain:
        print("\n".join(line for home in homes for line in _lines(home)))
    else:
        found = {str(home): [_told(job) for job in sweep.jobs(home)] for home in homes}
        print(json.dumps(found, indent=1))


def _told(job: sweep.Job) -> dict[str, Any]:
    """What a job's file says; one that runs no more is `killed`."""
    unsaid = {"status": "unknown", "overrides": [], "code": "?", "error": ""}
    told = unsaid | job.told | {"job": job.number}
    here = told.get("host") == socket.gethostname() and "slurm" not in told
    if told["status"] == "running" and here and not _lives(int(told["pid"])):
        told["status"] = "killed"
    return told


def _lines(home: Path) -> list[str]:
    """A line for the sweep and one for every job."""
    found = [_told(job) for job in sweep.jobs(home)]
    counts = Counter(told["status"] for told in found)
    summary = ", ".join(f"{count} {status}" for status, count in counts.items())
    lines = [f"{home}  {summary or 'no job has begun'}"]
    if found:
        lines.append(f"{'job':>5}  {'status':<8} {'value':>10}  arguments")
    for told in found:
        words = sweep.plain(told["overrides"])
        value = told.get("value")
        result = "" if value is None else f"{value:.5g}"
        lines.append(f"{told['job']:>5}  {told['status']:<8} {result:>10}  {words}")
        if told["status"] == "failed":
            lines.append(f"       exit {told['code']}: {told['error']}")
    return lines


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
