"""The table of faults in the docs is that of the contract, and all of it passed."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_every_fault_has_a_line_that_passed() -> None:
    place = ROOT / "scripts" / "faults" / "table.py"
    spec = importlib.util.spec_from_file_location("table", place)
    assert spec and spec.loader
    table = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(table)
    wanted = {f.id: f.what for rows in table.contract().values() for f in rows}
    shown = {}
    for line in (ROOT / "docs" / "faults.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) == 8 and cells[1][1:].isdigit() and cells[1][0].isupper():
            assert cells[5] == "passed", line
            shown[cells[1]] = cells[2]
    assert shown == wanted and len(wanted) > 100
