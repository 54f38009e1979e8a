"""The benchmark on a CPU: what it is asked for, what it says; nothing is measured."""

from __future__ import annotations

import importlib
import importlib.util
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).parent.parent / "scripts" / "bench"


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import a file of the benchmark."""
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module


@pytest.fixture
def command(module: Any) -> Any:
    """`python scripts/bench`."""
    spec = importlib.util.spec_from_file_location("bench", BENCH / "__main__.py")
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.mark.parametrize("option", ["--rounds", "--threads"])
@pytest.mark.parametrize("value", ["0", "-1", "1.5", "many"])
def test_numbers_that_are_none_are_refused(
    option: str, value: str, command: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        command.arguments([f"{option}={value}"])
    said = f"argument {option}: wants a whole number above 0, not {value}"
    assert said in capsys.readouterr().err


def test_every_option_has_a_help(
    command: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        command.arguments(["--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert "of every process; 1" in told and "in turn; 7" in told
    assert "nothing is written" in told


def test_a_small_run_says_that_its_numbers_mean_nothing(
    command: Any, module: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    command.arguments([])
    goals = module("goals")
    seen = []

    def fake(setting: Any) -> list[Any]:
        seen.append(setting)
        return [goals.Result("G4", "61.62x", True, "")]

    monkeypatch.setitem(goals.ROWS, "tail", fake)
    monkeypatch.setattr(module("report"), "keep", lambda *_: pytest.fail("kept"))
    monkeypatch.setattr(module("report"), "tell", lambda: pytest.fail("told"))
    assert command.main(["tail", "--small"]) == 0
    assert seen == [module("duel").Setting(1, 2, True)]
    assert capsys.readouterr().err == "--small: these numbers mean nothing\n"


def test_every_goal_of_a_cpu_has_a_row(command: Any, module: Any) -> None:
    command.arguments([])
    rows = module("goals").ROWS
    text = "".join(path.read_text() for path in (BENCH / "rows").glob("*.py"))
    for goal in module("goals").GOALS.values():
        assert goal.gpu or f'"{goal.name}"' in text, goal.name
    assert "orders" in rows


@pytest.mark.parametrize(
    ("last", "measured", "met"),
    [
        ("157 passed, 3 deselected in 21.04s", "157 tests pass, 0 fail", True),
        ("2 failed, 155 passed, 1 error in 9s", "155 tests pass, 3 fail", False),
        ("1 passed, 2 errors in 1s", "1 tests pass, 2 fail", False),
        ("no tests ran in 0.01s", "0 tests pass, 0 fail", False),
    ],
)
def test_samplers_are_correct_if_no_test_fails(
    last: str, measured: str, met: bool, module: Any
) -> None:
    result = module("rows.orders").verdict(last)
    assert (result.goal, result.measured, result.met) == ("G12", measured, met)


def test_tests_of_orders_that_do_not_run_are_a_fault(
    module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(words: list[str], **how: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(words, 4, "", "ERROR: not found: x")

    monkeypatch.setattr(module("rows.orders").subprocess, "run", run)
    with pytest.raises(module("duel").Fault, match="pytest: ERROR: not found: x"):
        module("rows.orders").orders(module("duel").Setting())


def test_the_tests_of_orders_are_there(module: Any) -> None:
    for name in module("rows.orders").TESTS:
        assert (Path(__file__).parent / f"test_{name}.py").exists()


def test_installing_says_which(
    module: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    peers = module("peers")
    monkeypatch.setattr(peers, "HOME", tmp_path)
    monkeypatch.setattr(peers.venv, "create", lambda home, **_: home.mkdir())
    monkeypatch.setattr(peers, "_ask", lambda peer, code: str(tmp_path))
    monkeypatch.setattr(peers, "_pip", lambda peer, *what: None)
    peer = peers.Peer("azula", "azula")
    assert peers.install(peer) == {"version": str(tmp_path)}
    assert "installing azula into" in capsys.readouterr().err
    assert json.loads(peer.note.read_text()) == peers.install(peer)
    assert capsys.readouterr().err == ""  # once


def test_exact_errors_in_small_are_of_few_points(module: Any) -> None:
    exact = module("subjects.exact")
    seen: list[tuple[int, int]] = []

    def walk(problem: Any, noise: Any, calls: int) -> Any:
        seen.append((len(noise), calls))
        return noise

    exact.measured(walk, 1.0, (), exact.END, small=True)()
    exact.measured(walk, 1.0, (5,), exact.END, small=True)()
    assert seen == [*((exact.FEW, calls) for calls in exact.CALLS[:2]), (exact.FEW, 5)]


def test_the_network_of_a_small_run_is_small_for_both(
    module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = module("rows.training")
    sides: list[Any] = []

    def contest(goal: str, title: str, given: list[Any], setting: Any) -> Any:
        sides.extend(given)
        result = module("goals").Result(goal, "", None, title)
        result.ratios = {side.name: {"median": 1.0} for side in given}
        return result, {}

    monkeypatch.setattr(training, "contest", contest)
    training.tail(module("duel").Setting(small=True))
    own, peer = sides
    assert set(training.TINY) < set(own.arguments["words"])
    assert peer.arguments == {"small": True}
