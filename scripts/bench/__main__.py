"""Measure dcli beside its peers, and write what came of it.

python scripts/bench                      # all that this machine can tell
python scripts/bench loop startup         # two rows of it
python scripts/bench --small              # that it runs; nothing is written
"""

from __future__ import annotations

import argparse
import importlib
import sys
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import report
from duel import Fault, Setting
from goals import ROWS


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """What is asked for; every file of `rows/` enters its rows."""
    for path in sorted((Path(__file__).parent / "rows").glob("[a-z]*.py")):
        importlib.import_module(f"rows.{path.stem}")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", metavar="ROW", help=", ".join(ROWS))
    parser.add_argument(
        "--threads", type=count, default=1, help="of every process; %(default)s"
    )
    parser.add_argument(
        "--rounds", type=count, default=7, help="of all sides in turn; %(default)s"
    )
    parser.add_argument(
        "--small",
        action="store_true",
        help="tiny sizes, two rounds: that it runs; nothing is written",
    )
    asked = parser.parse_args(argv)
    if wrong := set(asked.rows) - set(ROWS):
        parser.error(f"no row {', '.join(wrong)}; there are {', '.join(ROWS)}")
    return asked


def count(text: str) -> int:
    """A whole number of at least 1."""
    with suppress(ValueError):
        if (found := int(text)) > 0:
            return found
    raise argparse.ArgumentTypeError(f"wants a whole number above 0, not {text}")


def main(argv: list[str] | None = None) -> int:
    """Measure the rows asked for; 1 if one of them could not be."""
    asked = arguments(argv)
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
    if setting.small:
        print("--small: these numbers mean nothing", file=sys.stderr)
    else:
        report.tell()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
