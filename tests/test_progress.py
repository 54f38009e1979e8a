"""Measuring while a run trains: the numbers of `dcli eval`, and nothing else moves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import Dcli
from team import team
from tiny import tiny

from diffusion_cli import checkpoint
from diffusion_cli.commands import train
from diffusion_cli.errors import ConfigError
from diffusion_cli.evaluation import Trained
from diffusion_cli.metrics import Result
from diffusion_cli.progress import best

W2 = {"name": "sliced_w2", "n": 40}
MEASURED = {
    "metric": [W2],
    "every": {"eval": 4, "save": 0, "preview": 0},
    "evaluation": {"batch": 20},
}


def lines(run: Path) -> dict[int, dict[str, float]]:
    """The measurements of a run by step."""
    text = (run / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in text]
    return {line["step"]: line for line in found if "loss" not in line}


def trained(folder: Path, **own) -> Path:
    train.run(tiny(out=str(folder), **{**MEASURED, **own}), [])
    return folder


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch):
    """Measurements that say what is asked of them, by step."""

    def say(**numbers: float) -> None:
        found = {int(step[1:]): value for step, value in numbers.items()}
        monkeypatch.setattr(
            Trained,
            "measure",
            lambda self, node: Result({"sliced_w2": found[self.found.step]}),
        )

    return say


def test_the_numbers_are_those_of_dcli_eval(dcli: Dcli) -> None:
    run = trained(Path("run"))
    found = lines(run)
    assert list(found) == [4, 8, 12]
    words = ("metric=sliced_w2", "n=40", "batch=20", "seed=0", "json=true")
    for step in (8, 12):
        at = f"ckpt=run/checkpoints/step_{step:08d}"
        values = json.loads(dcli("eval", at, *words).out)["sliced_w2"]
        assert values == {k: found[step][k] for k in ("sliced_w2", "sliced_w2_floor")}


def test_training_does_not_notice(control_free: dict[str, str]) -> None:
    run = trained(Path("run"))
    files = checkpoint.load(run).files
    assert {name: entry["sha256"] for name, entry in files.items()} == control_free
    assert not list(run.glob("samples/*"))


@pytest.fixture
def control_free() -> dict[str, str]:
    """Hashes of a run that measures nothing."""
    train.run(tiny(out="control", every={"save": 0, "preview": 0}), [])
    files = checkpoint.load("control").files
    return {name: entry["sha256"] for name, entry in files.items()}


def test_the_best_checkpoint_stays(scripted) -> None:
    scripted(s4=3.0, s8=1.0, s12=2.0, s16=4.0, s20=5.0)
    run = trained(Path("run"), trainer={"steps": 20})
    steps = [path.name[-2:] for path in checkpoint.steps(run / "checkpoints")]
    assert steps == ["20", "16", "08"]
    more = trained(
        Path("two"), trainer={"steps": 20}, evaluation={"batch": 20, "best": False}
    )
    assert len(checkpoint.steps(more / "checkpoints")) == 2


def test_numbers_of_another_protocol_are_no_better(scripted) -> None:
    """More samples give other numbers: the best so far is the best of their kind."""
    scripted(s4=0.1, s8=3.0, s12=2.0, s16=2.5, s20=2.6)
    trained(Path("run"), trainer={"steps": 8})
    more = {"metric": [{**W2, "n": 50}], "trainer": {"steps": 20}}
    run = trained(Path("run"), **more, evaluation={"batch": 20, "patience": 2})
    steps = [path.name[-2:] for path in checkpoint.steps(run / "checkpoints")]
    assert steps == ["20", "16", "12"]  # not 4, the smallest of all
    told = [
        line["measured"]["sliced_w2"]["metric"]["n"] for line in lines(run).values()
    ]
    assert told == [40, 50, 50, 50, 50] and list(lines(run))[1] == 8


def test_patience_ends_a_run_and_its_end_lets_it_go_on(scripted, capsys) -> None:
    scripted(s4=1.0, s8=2.0, s12=3.0, s16=0.5, s20=0.6)
    patient = {"trainer": {"steps": 20}, "evaluation": {"batch": 20, "patience": 2}}
    run = trained(Path("run"), **patient)
    assert checkpoint.load(run).step == 12
    assert "stopped early at step 12" in capsys.readouterr().err
    trained(Path("run"), **patient)  # the same command again does nothing more
    assert checkpoint.load(run).step == 12 and list(lines(run)) == [4, 8, 12]
    trained(Path("run"), trainer={"steps": 20})
    assert checkpoint.load(run).step == 20 and list(lines(run)) == [4, 8, 12, 16, 20]


def test_what_a_kill_left_out_is_measured_later() -> None:
    run = trained(Path("run"), trainer={"steps": 12})
    kept = [line for line in (run / "metrics.jsonl").read_text().splitlines(True)]
    (run / "metrics.jsonl").write_text("".join(kept[:-1]))
    assert list(lines(run)) == [4, 8]
    train.run(tiny(out="run", **MEASURED, trainer={"steps": 16}), [])
    assert list(lines(run)) == [4, 8, 12, 16]


def test_two_processes_measure_the_same(tmp_path: Path) -> None:
    plain = {"name": "mlp", "width": 16, "depth": 1, "dropout": 0.0}
    one = trained(Path("one"), network=plain)
    values = tiny(out="two", network=plain, **MEASURED)
    assert team(2, lambda: train.run(values, [])) == [0, 0]
    alone, together = lines(one)[12], lines(Path("two"))[12]
    assert together["sliced_w2"] == pytest.approx(alone["sliced_w2"], rel=1e-4)
    assert len(lines(Path("two"))) == 3


def test_a_metric_that_does_not_fit_is_refused_before_training() -> None:
    with pytest.raises(ConfigError, match="`nelbo` needs a process on tokens"):
        trained(Path("run"), metric=[{"name": "nelbo"}])
    assert not Path("run/checkpoints").exists()


def test_best_is_the_first_smallest() -> None:
    assert best([]) is None
    assert best([(4, 2.0), (8, 1.0), (12, 1.0)]) == 8
