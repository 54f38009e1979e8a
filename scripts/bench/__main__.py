"""Measure dcli beside its peers, and write what came of it.

python scripts/bench                      # all that this machine can tell
python scripts/bench loop startup         # two rows of it
python scripts/bench --small              # that it runs; nothing is written
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import report
from duel import Fault, Setting
from goals import ROWS


def main() -> int:
    """Measure the rows asked for; 1 if one of them could not be."""
    for path in sorted((Path(__file__).parent / "rows").glob("[a-z]*.py")):
        importlib.import_module(f"rows.{path.stem}")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--small", action="store_true")
    asked = parser.parse_args()
    if wrong := set(asked.rows) - set(ROWS):
        parser.error(f"no row {', '.join(wrong)}; there are {', '.join(ROWS)}")
    setting = Setting(asked.threads, 2 if asked.small else asked.rounds, asked.small)
    failed = False
    for name in asked.rows or ROWS:
        how = f"--threads {setting.threads} --rounds {setting.rounds}"
        try:
            results = ROWS[name](setting)
        except Fault as fault:
            print(f"{name}: {fault}", file=sys.stderr)
            failed = True
            continue
        for result in results:
            told = result.goal or result.title
            print(f"{told} {result.measured}", *result.faults, sep="\n  ")
        if not setting.small:
            report.keep(name, results, setting, f"python scripts/bench {name} {how}")
    if not setting.small:
        report.tell()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
