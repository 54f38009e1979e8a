"""How runs whose names begin alike are told apart."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from diffusion_cli.paths import shown
from diffusion_cli.records import Record

_UNITS = ((86400, "d"), (3600, "h"), (60, "min"))
_SHOWN = 5


def age(seconds: float) -> str:
    """A time span in its largest unit: `3 h`."""
    for length, unit in _UNITS:
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Rows as columns of text."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(w) for cell, w in zip(row, widths, strict=True))
        yield "  ".join(cells).rstrip()


def typed(runs: Sequence[Record]) -> list[str]:
    """Of what was typed for every run, the words that were not typed for all."""
    words = [run.overrides for run in runs]
    known = [set(own) for own in words if own is not None]
    common = set.intersection(*known) if known else set()
    own = [[word for word in each or () if word not in common] for each in words]
    return [shown(" ".join(each)) for each in own]


def by_age(paths: Iterable[Path]) -> list[Record]:
    """Runs, the newest last."""
    return sorted(map(Record, paths), key=lambda run: run.time)


def told(paths: Iterable[Path]) -> str:
    """The newest of several runs, a line each, the newest last."""
    found = by_age(paths)
    last, now = found[-_SHOWN:], time.time()
    rows = [
        (f"  {run.name}", f"step {run.step}", f"{age(now - run.time)} ago", words)
        for run, words in zip(last, typed(last), strict=True)
    ]
    return "\n".join([f"one of {len(found)} runs", *aligned(rows)])
