"""`dcli report` and `dcli runs` over what is unfinished, wrong or no run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import Dcli
from pages import left

MISTAKES = {
    "report": "error: report: name at least one run\nhint: dcli report runs/*\n",
    "report aa": """\
error: report: there is no `aa`; nearest: runs/ac, runs/ab
hint: dcli runs ls
""",
    "report notes.txt": """\
error: report: notes.txt: is no run, and holds none
hint: dcli report runs/*
""",
    "report ab out=runs": """\
error: out: `runs` is a folder
hint: out=runs/report.html
""",
    "report ab out=notes.txt": """\
error: out: notes.txt is there and is no report
hint: out=<another file>
""",
    "report ab out=no/where.html": """\
error: out: there is no folder no
hint: mkdir it first
""",
    "report ab titel=x": """\
error: report: takes no `titel`
hint: dcli report --help
""",
    "runs": "error: runs: ls, show, diff?\nhint: dcli runs ls\n",
    "runs lss": """\
error: runs: there is no `lss`; did you mean `ls`?
hint: dcli runs ls
""",
    "runs ls sort=los": """\
error: runs ls: cannot sort by `los`; did you mean `loss`?
hint: sort= takes time, name, step, loss
""",
    "runs diff ab": """\
error: runs diff: two runs at least
hint: dcli runs diff RUN RUN
""",
    "runs show": """\
error: runs show: name at least one run
hint: dcli runs show runs/*
""",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_mistakes_are_told(line: str, tmp_path: Path, dcli: Dcli) -> None:
    left(tmp_path / "runs" / "ab")
    left(tmp_path / "runs" / "ac")
    (tmp_path / "notes.txt").write_text("mine")
    before = {path: path.stat().st_mtime for path in tmp_path.rglob("*")}
    got = dcli(*line.split())
    assert (got.code, got.out, got.err) == (2, "", MISTAKES[line])
    assert {path: path.stat().st_mtime for path in tmp_path.rglob("*")} == before


def test_the_folder_of_sweeps_is_passed_over_in_silence(
    tmp_path: Path, dcli: Dcli
) -> None:
    left(tmp_path / "runs" / "a")
    (tmp_path / "runs" / "sweeps" / "train-1a2b3c4d").mkdir(parents=True)
    got = dcli("report", "runs/a", "runs/sweeps")
    assert got.code == 0 and "passed over" not in got.err
    got = dcli("report", "runs/sweeps")
    assert got.code == 2 and "runs/sweeps: is no run, and holds none" in got.err


def test_runs_of_one_beginning_are_told_apart(tmp_path: Path, dcli: Dcli) -> None:
    for name in ("ab", "ac"):
        left(tmp_path / "runs" / name)
    words = tmp_path / "runs" / "ab" / "overrides.yaml"
    words.write_text('[dataset=toy2d, "seed=1\\e"]')
    got = dcli("report", "a")
    told = (
        "error: report: `a` could be one of 2 runs\n"
        r"  ab  step 4  \d s ago  seed=1\\x1b\n"
        r"  ac  step 4  \d s ago\n"
        "hint: type more of the name\n"
    )
    assert got.code == 2 and re.fullmatch(told, got.err), got.err


def test_no_runs_tells_where_it_looked(tmp_path: Path, dcli: Dcli) -> None:
    got = dcli("runs", "ls")
    assert got.code == 2 and f"there is no folder runs in {tmp_path}\n" in got.err


def test_what_is_no_run_is_passed_over(tmp_path: Path, dcli: Dcli) -> None:
    left(tmp_path / "runs" / "a")
    (tmp_path / "runs" / "notes").mkdir()
    (tmp_path / "runs" / "notes" / "config.yaml").write_text("mine: true")
    (tmp_path / "runs" / "todo.txt").write_text("")
    got = dcli("report", *(f"runs/{name}" for name in ("a", "notes", "todo.txt")))
    assert got.code == 0 and got.out == "report.html\n"
    assert got.err.startswith(
        "passed over: runs/notes: is no run, and holds none\n"
        "passed over: runs/todo.txt: is no run, and holds none\n"
    )
    assert dcli("report", "runs").code == 0, "an older report is replaced"
