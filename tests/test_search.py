"""A search by Optuna: its trials are jobs, it goes on, and it gives up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import optuna
import pytest
from conftest import Dcli
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from diffusion_cli import trial
from diffusion_cli.search import distribution
from diffusion_cli.sweep import Job, known_as

SMALL = "train -m dataset=toy2d process=flow network.width=8 network.depth=1 "
SMALL += (
    "trainer.steps=4 trainer.batch=8 trainer.workers=0 every.log=1 every.preview=0 "
)
SMALL += "device=cpu sampler.steps=2 hydra/sweeper=optuna "
LR = "optimizer.lr=tag(log,interval(1e-4,1e-2))"


def home() -> Path:
    (found,) = Path("runs/sweeps").glob("train-*")
    return found


def trials(place: Path) -> list[Any]:
    return trial.study(place).get_trials()


SPACES = {
    "a=interval(0.5,2)": FloatDistribution(0.5, 2.0),
    "a=tag(log,interval(1e-4,1))": FloatDistribution(1e-4, 1.0, log=True),
    "a=int(interval(2,8))": IntDistribution(2, 8),
    "a=tag(log,int(interval(2,8)))": IntDistribution(2, 8, log=True),
    "a=x,y": CategoricalDistribution(["x", "y"]),
    "a=choice(1,2,4)": CategoricalDistribution(["1", "2", "4"]),
    "a=range(1,4)": CategoricalDistribution(["1", "2", "3"]),
}


@pytest.mark.parametrize("word", SPACES)
def test_words_are_a_space(word: str) -> None:
    (found,) = OverridesParser.create().parse_overrides([word])
    space: BaseDistribution = distribution(found)
    assert space == SPACES[word]


def test_trials_are_jobs_and_the_search_goes_on(dcli: Dcli) -> None:
    words = [*SMALL.split(), LR, "network.width=int(interval(4,16))"]
    first = dcli(*words, "hydra.sweeper.n_trials=2")
    assert first.code == 0, first.err
    assert "search: 2 trials, 0 given up, 0 failed; best: job " in first.err
    found = trials(home())
    for number, each in enumerate(found):
        job = Job(home(), number)
        assert job.value == each.value and job.status == "done"
        assert f"optimizer.lr={each.params['optimizer.lr']}" in " ".join(
            job.told["overrides"]
        )
        assert type(each.params["network.width"]) is int
    assert len({each.params["optimizer.lr"] for each in found}) == 2
    again = dcli(*words, "hydra.sweeper.n_trials=3")
    assert again.code == 0 and again.out.count("runs/toy2d-flow-") == 1, again.out
    more = trials(home())
    assert [t.params for t in more[:2]] == [t.params for t in found]
    assert (
        min(more, key=lambda t: t.value).number == trial.study(home()).best_trial.number
    )


def test_a_trial_that_was_cut_short_is_run_to_its_end(dcli: Dcli) -> None:
    words = [*SMALL.split(), LR, "hydra.sweeper.n_trials=2"]
    assert dcli(*words).code == 0
    place, before = home(), trials(home())
    # as a kill in the second trial leaves it
    study = optuna.load_study(
        study_name=trial.NAME, storage=f"sqlite:///{place}/study.db"
    )
    cut = study.ask({"optimizer.lr": FloatDistribution(1e-4, 1e-2, log=True)})
    again = dcli(*SMALL.split(), LR, "hydra.sweeper.n_trials=3")
    assert again.code == 0, again.err
    after = trials(place)
    assert len(after) == 3 and after[2].params == cut.params
    assert after[2].value is not None and after[:2] == before


def test_a_failed_trial_does_not_end_the_search(dcli: Dcli) -> None:
    words = [*SMALL.split(), "trainer.batch=choice(-3)", "hydra.sweeper.n_trials=2"]
    found = dcli(*words)
    assert found.code == 10 and "2 of 2 jobs failed" in found.err
    assert "search: 2 trials, 0 given up, 2 failed" in found.err


def test_what_a_run_is_worth_is_its_best_measurement(dcli: Dcli) -> None:
    words = [*SMALL.split(), LR, "metric=w2", "every.eval=2", "evaluation.n=16"]
    words += ["hydra.sweeper.n_trials=1"]
    assert dcli(*words).code == 0
    (run,) = Path("runs").glob("toy2d-flow-*")
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    measured = [line["w2"] for line in lines if "w2" in line]
    assert len(measured) == 2 and trials(home())[0].value == min(measured)
    # another sweep meets the run complete, and reads what it is worth
    lr, place = trials(home())[0].params["optimizer.lr"], home()
    other = [word for word in words if word != LR] + [f"optimizer.lr=choice({lr!r})"]
    assert dcli(*other).code == 0
    (fresh,) = [p for p in Path("runs/sweeps").glob("train-*") if p != place]
    assert trials(fresh)[0].value == min(measured)
    assert len(list(Path("runs").glob("toy2d-flow-*"))) == 1


def test_a_trial_worse_than_the_median_is_given_up(dcli: Dcli) -> None:
    words = [*SMALL.split(), LR, "metric=w2", "every.eval=2", "evaluation.n=16"]
    words += ["hydra.sweeper.warmup=1"]
    assert dcli(*words, "hydra.sweeper.n_trials=1").code == 0
    place = home()
    study = optuna.load_study(
        study_name=trial.NAME, storage=f"sqlite:///{place}/study.db"
    )
    space = {"optimizer.lr": FloatDistribution(1e-4, 1e-2, log=True)}
    good = study.ask(space)  # no training is as good
    for step in (2, 4):
        good.report(1e-9, step)
    study.tell(good, 1e-9)
    again = dcli(*words, "hydra.sweeper.n_trials=3")
    assert again.code == 0 and "given up by the search at step 2" in again.err
    assert "3 trials, 1 given up, 0 failed; best: job 1, 1e-09" in again.err
    assert trials(place)[2].state.name == "PRUNED"
    never = dcli(*words, "hydra.sweeper.n_trials=4", "hydra.sweeper.prune=false")
    assert never.code == 0 and trials(place)[3].state.name == "COMPLETE"


def test_a_run_that_is_no_trial_is_never_given_up(tmp_path: Path) -> None:
    assert not trial.hopeless(1, 1.0)
    with known_as(Job(tmp_path, 3)):  # a job of a sweep, and of no search
        assert not trial.hopeless(1, 1.0)
    assert not trial.hopeless(1, 1.0)


MISTAKES = {
    SMALL + "hydra.sweeper.n_trials=0 " + LR: "hydra.sweeper.n_trials: must be a whole",
    SMALL + "hydra.sweeper.direction=up " + LR: "must be minimize or maximize",
    SMALL: "nothing is searched",
    SMALL.replace("hydra/sweeper=optuna", "hydra/sweeper=optuma") + LR: "optuma",
}


@pytest.mark.parametrize("words", MISTAKES)
def test_mistakes_are_told(words: str, dcli: Dcli) -> None:
    found = dcli(*words.split())
    assert found.code == 2 and MISTAKES[words] in found.err, found.err
    assert not list(Path("runs").glob("toy2d*"))


def test_without_the_package_the_command_says_how_to_get_it(
    dcli: Dcli, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "optuna", None)
    found = dcli(*SMALL.split(), LR)
    assert found.code == 5 and "pip install 'diffusion-cli[search]'" in found.err
