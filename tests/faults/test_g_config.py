"""Table G: what a user types, refused before anything is begun."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from harness import TRAIN, Place, controls, place, says, trained
from tiny import outcome

__all__ = ["controls", "place"]  # fixtures
pytestmark = pytest.mark.fault


class Row(NamedTuple):
    """A command and how it is refused."""

    name: str
    words: str
    says: str
    code: int = 2
    arrange: Callable[[Place], Any] = lambda there: None


def fixtures(there: Place) -> None:
    """Configs of somebody else."""
    there.file("conf/exp/circle.yaml", "# @package _global_\nname: ${name}\n")
    there.file("conf/exp/strange.yaml", "# @package _global_\nname: ${nope:1}\n")
    there.file("conf/exp/unset.yaml", "# @package _global_\nname: ${oc.env:NO_SUCH}\n")
    there.file("conf/exp/typo.yaml", "# @package _global_\ntrainer: {stpes: 3}\n")
    there.file("conf/exp/torn.yaml", "# @package _global_\ntrainer: {steps: 3\n")


CONF = "train --config-dir conf exp="
ROWS = [
    Row("A17", "train checkpoint.keep=1", r"checkpoint.keep: must be 0 or >= 2, got 1"),
    Row("G1", "train stpes=5", r"stpes: there is no such key; did you mean `\S*steps`"),
    Row("G1-nested", "train trainer.stpes=5", r"did you mean `trainer.steps`"),
    Row("G2-plus", "train +stpes=5", r"stpes: there is no such key"),
    Row("G2-plusplus", "train ++network.chanels=3", r"did you mean `channels`"),
    Row("G2-exp", CONF + "typo", r"stpes.*did you mean `trainer.steps`", 2, fixtures),
    Row("G3", "train +exp=ddpm_cfar", r"did you mean `ddpm_cifar`"),
    Row("G4", "train sampler=dpmpp3", r"did you mean `dpmpp`"),
    Row("G4-process", "train process=dpm", r"process: there is no `dpm`"),
    Row("G5", "train trainer.steps=0 trainer.batch=-1 trainer.ema=[0] every.log=0",
        r"trainer.steps: must be >= 1, got 0\nerror: trainer.batch: must be >= 1, got"
        r" -1\nerror: trainer.ema: (.|\n)*every.log: must be >= 1"),
    Row("G5-nan", "train optimizer.lr=nan", r"optimizer.lr: expected a number, got"),
    Row("G5-sigma", "train process=ve process.schedule.sigma_min=60", "sigma_m"),
    Row("G5-dropout", "train network.dropout=1.5", r"network.dropout: must be"),
    Row("G6-empty", "train trainer.steps=", r"trainer.steps: expected an integer"),
    Row("G6-half", "train trainer.steps=1e3.5", r"trainer.steps"),
    Row("G6-part", "train trainer.steps=10.5", r"expected an integer, got 10.5"),
    Row("G7-parametrisation", "train process=flow parametrisation=eps", "eps.*"),
    Row("G7-sampler", "train process=mask sampler=heun dataset=digit_tokens",
        r"sampler.*`heun`.*(.|\n)*hint: "),
    Row("G7-guidance", "train dataset=toy2d guidance=cfg", r"guidance.*labels"),
    Row("G7-objective", "train process=flow objective=hybrid", r"objective"),
    Row("G7-fp16", "train trainer.precision=fp16 device=cpu", "fp16 needs a GPU"),
    Row("G7-steps", "train process=ddpm sampler.steps=2000", r"1000"),
    Row("G9-missing", "sample", r"ckpt: a value is needed"),
    Row("G9-circle", CONF + "circle", r"name.*", 2, fixtures),
    Row("G9-resolver", CONF + "strange", r"nope", 2, fixtures),
    Row("G9-unset", CONF + "unset", r"NO_SUCH", 2, fixtures),
    Row("G9-torn", CONF + "torn", r"torn.yaml, line \d+: not yaml", 2, fixtures),
    Row("G13-flag", "train --stepz", r"--stepz"),
    Row("G13-verb", "trian", r"there is no verb `trian`; did you mean `train`"),
    Row("G16-negative", "train seed=-1", r"seed: must be in 0 .. 2\^63 - 1, got -1"),
    Row("G16-large", "train seed=9223372036854775808", r"seed"),
    Row("G16-float", "train seed=0.5", r"seed: expected an integer"),
    Row("G16-string", "train seed=abc", r"seed: expected an integer, got 'abc'"),
    Row("I6-up", "train name=../../etc/x", r"name: must be letters, digits and"),
    Row("I6-absolute", "train name=/tmp/x", r"name: must be"),
    Row("I6-dash", "train name=-x", r"name"),
    Row("I6-dot", "train name=x.", r"name: must be"),
    Row("J5-steps", "sample ckpt=run steps=0", r"steps: must be >= 1"),
    Row("J5-n", "sample ckpt=run n=0", r"n: must be >= 1, got 0"),
    Row("J5-negative", "sample ckpt=run n=-3", r"n: must be >= 1, got -3"),
    Row("J5-seed", "sample ckpt=run seed=-1", r"seed: must be in"),
]  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_config(row: Row, place: Place) -> None:
    row.arrange(place)
    told = place.dcli(*row.words.split())
    assert told.code == row.code, told.err
    says(told, row.says)
    assert told.out == "" and not (place.work / "runs").exists()
    assert "+stpes" not in told.err and "Hydra" not in told.err


@pytest.mark.parametrize("steps", ["12.0", "1_2", "1.2e1"])
def test_a_whole_number_may_be_written_as_one_likes(steps: str, place: Place) -> None:
    """G6."""
    place.put(trained())
    told = place.dcli(*TRAIN, f"trainer.steps={steps}")
    assert told.code == 0 and "already complete at step 12" in told.err


def test_a_recipe_needs_no_plus(place: Place) -> None:
    """G3."""
    for word in ("exp=digits", "+exp=digits"):
        told = place.dcli("check", word)
        assert told.code == 0 and "unet" in told.out, told.err


def test_paths_are_those_of_the_caller(place: Place) -> None:
    """G14."""
    place.file("elsewhere/x", "")
    place.dcli(*TRAIN, "out=elsewhere/run")
    assert outcome(place.work / "elsewhere" / "run") == outcome(trained())
    assert place.dcli(*TRAIN, f"out={place.work}/elsewhere/run").code == 0


@pytest.mark.parametrize("package", ["hydra-core", "omegaconf"])
def test_another_hydra_is_refused(package: str, place: Place) -> None:
    """G15."""

    def other() -> None:
        from importlib import metadata

        real = metadata.version
        metadata.version = lambda name: "9.9.9" if name == package else real(name)

    told = place.dcli(*TRAIN, before=other)
    assert told.code == 5
    says(told, rf"{package} 9\.9\.9(.|\n)*hint: pip install")
