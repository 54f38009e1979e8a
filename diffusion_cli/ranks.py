"""Processes of one command: where this one stands among them, and how to start them.

Free of torch: the process that starts the others only watches them.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from diffusion_cli.errors import ConfigError, DcliError, Stopped, WorkerError
from diffusion_cli.stop import Stop

GRACE = 10.0  # seconds that the others have to end, after the first has failed
_TICK = 0.05
_TAIL = 20  # lines of a rank's last words


class Standing(NamedTuple):
    """Which of `size` processes this one is; `local` counts those of one machine."""

    rank: int
    size: int
    local: int


def standing() -> Standing | None:
    """What torchrun, srun or `run` below say of this process; None: it is alone."""
    env = os.environ
    if "RANK" in env and "WORLD_SIZE" in env:
        rank, size = _number("RANK"), _number("WORLD_SIZE")
        local = _number("LOCAL_RANK") if "LOCAL_RANK" in env else rank
    elif "SLURM_PROCID" in env and "SLURM_STEP_NUM_TASKS" in env:
        rank, size = _number("SLURM_PROCID"), _number("SLURM_STEP_NUM_TASKS")
        local = _number("SLURM_LOCALID")
    else:
        return None
    if not 0 <= rank < size:
        message = f"environment: rank {rank} of {size} processes cannot be"
        raise ConfigError(message, "unset RANK WORLD_SIZE")
    return Standing(rank, size, local) if size > 1 else None


def _number(name: str) -> int:
    value = os.environ.get(name, "")
    if not value.isdecimal():
        message = f"environment: {name} must be a number, got {value!r}"
        raise ConfigError(message, f"unset {name}")
    return int(value)


class Relayed(DcliError):
    """What a rank has told already; only its exit code is left."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(f"a rank ended with exit {exit_code}")
        self.exit_code = exit_code

    def render(self) -> str:
        """Nothing: the rank has said it."""
        return ""


def run(
    verb: str, values: Mapping[str, Any], overrides: Sequence[str], count: int
) -> float | None:
    """Run a checked command as `count` processes of this machine.

    Signals go to every one of them. The first that fails ends all: a `WorkerError` if
    it died, hung or met a bug, else its own exit code.
    """
    with tempfile.TemporaryDirectory(prefix="dcli-") as name, Stop() as stop:
        folder = Path(name)
        task = {"verb": verb, "values": values, "overrides": list(overrides)}
        (folder / "task.json").write_text(json.dumps(task))
        stop.begin()
        team = _Team([_start(folder, rank, count) for rank in range(count)])
        try:
            codes = team.wait(stop)
        finally:
            team.kill()
        return _outcome(verb, folder, codes)


def _start(folder: Path, rank: int, count: int) -> subprocess.Popen[bytes]:
    """A rank in a process group of its own; only the first one speaks."""
    env = {**os.environ, "RANK": str(rank), "WORLD_SIZE": str(count)}
    env |= {"LOCAL_RANK": str(rank), "DCLI_STORE": str(folder / "store")}
    words = [sys.executable, "-P", "-m", __name__, str(folder), str(os.getpid())]
    if rank == 0:
        return subprocess.Popen(words, env=env, process_group=0)
    with (folder / f"{rank}.err").open("wb") as words_of:
        return subprocess.Popen(
            words, env=env, process_group=0, stdout=words_of, stderr=words_of
        )


class _Team:
    def __init__(self, members: list[subprocess.Popen[bytes]]) -> None:
        self.members = members

    def wait(self, stop: Stop) -> list[int | None]:
        """Exit codes when all have ended; None for who did not, after a failure."""
        told, deadline = False, float("inf")
        while True:
            codes = [member.poll() for member in self.members]
            if None not in codes or time.monotonic() > deadline:
                return codes
            if any(codes) and deadline == float("inf"):
                deadline = time.monotonic() + GRACE
            if stop.number is not None and not told:
                told = True
                for member in self.members:
                    member.send_signal(stop.number)
            time.sleep(_TICK)

    def kill(self) -> None:
        """End whatever is left, with its loader processes."""
        for member in self.members:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(member.pid, signal.SIGKILL)
            member.wait()


def _outcome(verb: str, folder: Path, codes: list[int | None]) -> float | None:
    """What the ranks came to: the first one's value, or the error that was first."""
    found = [_report(folder, rank) for rank in range(len(codes))]
    failed = [r for r, report in enumerate(found) if report is None or report["code"]]
    if not failed:
        assert found[0] is not None
        return found[0]["value"]  # type: ignore[no-any-return]  # of JSON
    # who only noticed that another is gone, or had to be ended, did not fail first
    bereft = [r for r in failed if (found[r] or {}).get("bereft") or codes[r] is None]
    guilty = [r for r in failed if r not in bereft] or failed
    early = min(guilty, key=lambda r: (found[r] or {"time": 0.0})["time"])
    report, code = found[early], codes[early]
    if report is None:
        how = "ended without a word"
        if code is not None and code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
        _quote(folder, early)
        message = f"{verb}: rank {early} {how}"
        hint = "if it was killed, the machine may be out of memory: a smaller batch"
        raise WorkerError(message, hint, "RANK")
    if report["code"] == 1 or report["code"] == WorkerError.exit_code:
        _quote(folder, early)
        message = f"{verb}: rank {early}: {report['error']}"
        raise WorkerError(message, report.get("hint", ""), "RANK")
    if report["code"] > 128:
        raise Stopped(report["code"] - 128, "")
    if early:
        print(f"rank {early}: {report['said']}", file=sys.stderr)
    raise Relayed(report["code"])


def _report(folder: Path, rank: int) -> dict[str, Any] | None:
    path = folder / f"{rank}.json"
    return json.loads(path.read_text()) if path.exists() else None


def _quote(folder: Path, rank: int) -> None:
    """The last words of a rank whose stderr nobody saw."""
    path = folder / f"{rank}.err"
    if path.exists():
        for line in path.read_text(errors="replace").splitlines()[-_TAIL:]:
            print(f"rank {rank}: {line}", file=sys.stderr)


def main(folder: Path, parent: int) -> int:
    """One rank: the command, and a report of how it ended."""
    from diffusion_cli import cli

    _die_with(parent)
    logging.getLogger("diffusion_cli.stop").disabled = True  # the parent says it
    task = json.loads((folder / "task.json").read_text())
    report: dict[str, Any] = {"code": 0, "value": None, "error": "", "said": ""}
    try:
        command = importlib.import_module(f"diffusion_cli.commands.{task['verb']}")
        report["value"] = command.run(task["values"], task["overrides"])
        sys.stdout.flush()
    except KeyboardInterrupt:
        report["code"] = 130
    except Exception as problem:  # every failure has an exit code
        report["time"] = time.time()
        report["bereft"] = getattr(problem, "bereft", False)
        report["error"] = f"{type(problem).__name__}: {problem}"
        if isinstance(problem, DcliError):
            report |= {"error": problem.message, "hint": problem.hint}
            report["said"] = problem.render()
        told = report["bereft"] or isinstance(problem, WorkerError)
        report["code"] = 9 if told else cli.report(problem, task["verb"])
    report.setdefault("time", time.time())
    path = folder / f"{os.environ['RANK']}.json"
    part = path.with_suffix(".part")
    part.write_text(json.dumps(report))
    part.replace(path)
    return int(report["code"])


def _die_with(parent: int) -> None:
    """Ask the kernel to end this process with the one that started it (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1: PR_SET_PDEATHSIG
    if os.getppid() != parent:  # it has gone already
        os._exit(WorkerError.exit_code)


if __name__ == "__main__":
    code = main(Path(sys.argv[1]), int(sys.argv[2]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # threads of the collectives may outlive their use
