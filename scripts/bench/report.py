"""Results: kept as JSON, and told in `docs/benchmarks.md` between two marks."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import picture
import torch
from duel import Setting
from goals import GOALS, Result
from peers import PEERS, ROOT, install

STORE = ROOT / "docs" / "benchmarks.json"
PAGE = ROOT / "docs" / "benchmarks.md"
PICTURE = ROOT / "docs" / "pictures" / "benchmarks.png"
BEGIN, END = "<!-- measured -->", "<!-- /measured -->"


def machine(setting: Setting) -> str:
    """What it was measured on."""
    if torch.cuda.is_available():
        where = torch.cuda.get_device_name()
    else:
        told = Path("/proc/cpuinfo")
        lines = told.read_text().splitlines() if told.exists() else []
        names = [x.split(":")[1].strip() for x in lines if x.startswith("model name")]
        where = names[0] if names else platform.processor()
        where += f", {os.cpu_count()} cores, no GPU"
    return f"{where}; {setting.threads} thread{'s' * (setting.threads > 1)}"


def versions() -> str:
    """Of dcli, torch and the peers that are installed."""
    peers = [
        f"{name} {install(peer).get('version', '-')}"
        for name, peer in PEERS.items()
        if peer.note.exists()
    ]
    own = [f"dcli {commit()}", f"torch {torch.__version__}"]
    return ", ".join([*own, *peers])


def commit() -> str:
    """Of this tree."""
    command = ["git", "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:  # no git
        return "-"
    return done.stdout.strip() or "-"


def keep(name: str, results: list[Result], setting: Setting, command: str) -> None:
    """Put the results of a row in place of what was known of it."""
    known = load()
    known[name] = {
        "machine": machine(setting),
        "versions": versions(),
        "command": command,
        "when": time.strftime("%Y-%m-%d"),
        "rounds": setting.rounds,
        "results": [result.plain() for result in results],
    }
    STORE.write_text(json.dumps(known, indent=1) + "\n")


def load() -> dict[str, Any]:
    """All that was measured so far, by row."""
    return dict(json.loads(STORE.read_text())) if STORE.exists() else {}


def tell() -> None:
    """Write the tables between the marks of the page, and the picture of all."""
    picture.draw(load(), PICTURE)
    text = PAGE.read_text()
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    body = "\n".join([BEGIN, "", *goals(), "", *details(), END])
    PAGE.write_text(before + body + after)


def goals() -> list[str]:
    """A line for each goal."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in load().values():
        for result in row["results"]:
            found.setdefault(result["goal"], []).append(result)
    lines = ["| | What | Wanted | Measured | |", "|---|---|---|---|---|"]
    for goal in GOALS.values():
        results = found.get(goal.name, [])
        told = "; ".join(result["measured"] for result in results) or "-"
        verdicts = [result["met"] for result in results if result["met"] is not None]
        verdict = "needs a GPU" if goal.gpu else "not measured"
        if verdicts:
            verdict = "met" if all(verdicts) else "not met"
        lines.append(
            f"| {goal.name} | {goal.what} | {goal.wanted} | {told} | {verdict} |"
        )
    return lines


def details() -> list[str]:
    """A table of the sides of each comparison."""
    lines: list[str] = []
    for row in load().values():
        for result in row["results"]:
            if result["sides"]:
                lines += ["", f"### {result['title']}", "", *table(result)]
                if not result["goal"] and result["measured"]:
                    lines += ["", result["measured"]]
            lines += [f"Not measured: {fault}.  " for fault in result["faults"]]
        lines += ["", f"`{row['command']}`, {row['when']}, {row['rounds']} rounds. "]
        lines += [f"{row['machine']}. {row['versions']}."]
    return lines[1:]


def table(result: dict[str, Any]) -> list[str]:
    """The number that counts of every side, how often it has ours, and what else."""
    of, also = result["of"], result.get("also", [])
    timed = of in ("worked", "seconds")
    heads = ["median", "spread"] if timed else [of]
    lines = [f"| | {' | '.join([*heads, 'of the first', *also])} |"]
    lines.append("|---" * (len(heads) + len(also) + 2) + "|")
    for name, numbers in result["sides"].items():
        own, ratio = numbers[of], result["ratios"].get(name)
        cells = [f"{own['median']:.3g}"]
        if timed:
            cells = [shown(own["median"]), f"{own['spread']:.0%}"]
        cells.append(times(ratio) if ratio else "1")
        more = [numbers.get(key) for key in also]
        cells += [f"{found['median']:.3g}" if found else "-" for found in more]
        lines.append(f"| {' | '.join([name, *cells])} |")
    return lines


def times(ratio: dict[str, float]) -> str:
    """A ratio, and where it lay in between if there were several."""
    low, middle, high = (ratio[key] for key in ("min", "median", "max"))
    return f"{middle:.3g}" + f" ({low:.3g} to {high:.3g})" * (low < high)


def shown(seconds: float) -> str:
    """A time as a person reads it."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"
