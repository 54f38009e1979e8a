"""Run every test of the failure contract and write which fault it is, and how it went.

    python scripts/faults/table.py docs/faults.md

`contract.txt` names the faults. A test says which it covers: in `tests/faults` at the
beginning of its id (`F10-killed`) or of its docstring (`C11: ...`), elsewhere in a
docstring that begins with `Fault D3` or `Faults H1, H2`. The table replaces what stands
behind the line `<!-- table -->` of the file. Exit code 1 if a fault has no test,
or a test fails.
"""

from __future__ import annotations

import os
import platform
import re
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import pytest

MARK = "<!-- table -->\n"
HERE = Path(__file__).parent


class Fault(NamedTuple):
    id: str
    what: str
    exit: str


def contract() -> dict[str, list[Fault]]:
    """The faults by the heading under which they stand."""
    found: dict[str, list[Fault]] = {}
    for line in (HERE / "contract.txt").read_text().splitlines():
        if "|" not in line:
            heading = line
            found[heading] = []
        else:
            found[heading].append(Fault(*(part.strip() for part in line.split("|"))))
    return found


def covered(item: pytest.Item) -> list[str]:
    """The faults that a test names."""
    there = "/faults/" in item.nodeid
    call = getattr(item, "callspec", None)
    if there and call and (own := re.match(r"[A-LRS]\d+(?=-|$)", call.id)):
        return [own[0]]
    text = getattr(item.obj, "__doc__", None) or ""  # type: ignore[attr-defined]
    begin = "" if there else "Faults? "
    named = re.match(rf"{begin}((?:[A-LRS]\d+, )*[A-LRS]\d+)(?=[ .:,])", text)
    return named[1].split(", ") if named else []


class Recorder:
    """Runs only what names a fault, and keeps the outcome and the time."""

    def __init__(self) -> None:
        self.faults: dict[str, list[str]] = {}
        self.took: dict[str, float] = defaultdict(float)
        self.bad: dict[str, str] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        self.faults = {i.nodeid: ids for i in items if (ids := covered(i))}
        items[:] = [item for item in items if item.nodeid in self.faults]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.took[report.nodeid] += report.duration
        if report.outcome != "passed":
            self.bad[report.nodeid] = report.outcome

    def line(self, fault: Fault) -> str:
        own = [node for node, ids in self.faults.items() if fault.id in ids]
        tests: dict[str, list[str]] = defaultdict(list)
        for node in own:
            path, _, name = node.removeprefix("tests/").partition("::")
            tests[f"{path}::{name.partition('[')[0]}"].append(node)
        bad = sorted({self.bad[node] for node in own if node in self.bad})
        result = ", ".join(bad) if bad else "passed" if own else "**no test**"
        cases = [
            f"`{name}`" + (f" ({len(nodes)} cases)" if len(nodes) > 1 else "")
            for name, nodes in tests.items()
        ]
        took = sum(self.took[node] for node in own)
        cells = (
            fault.id,
            fault.what,
            fault.exit,
            ", ".join(cases),
            result,
            f"{took:.1f}",
        )
        return f"| {' | '.join(cells)} |"


def main(target: Path) -> int:
    recorder, begun = Recorder(), time.monotonic()
    chosen = "not gpu and not cluster"
    code = pytest.main(["-m", chosen, "-n", "0", "tests"], plugins=[recorder])
    faults, lines = contract(), []
    for heading, rows in faults.items():
        lines += [f"\n### {heading}\n", "| Id | Fault | Exit | Test | Result | s |"]
        lines += ["|---|---|---|---|---|---|", *map(recorder.line, rows)]
    known = {fault.id for rows in faults.values() for fault in rows}
    tested = {id_ for ids in recorder.faults.values() for id_ in ids}
    count, took = len(recorder.faults), time.monotonic() - begun
    summary = (
        f"{len(known)} faults, {count} cases, {len(recorder.bad)} not passed, "
        f"{took:.0f} s in one process; Python {platform.python_version()}, "
        f"{os.cpu_count()} cores.\n"
    )
    head = target.read_text().partition(MARK)[0]
    target.write_text(head + MARK + "\n" + summary + "\n".join(lines) + "\n")
    for id_ in sorted(known ^ tested):
        print(f"{id_}: {'no test' if id_ in known else 'not in contract.txt'}")
    return int(bool(code or known ^ tested))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
