"""Wrong command lines: each is refused, teaches and leaves nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Dcli

TAKES = "dcli list sampler"
REFUSALS = {
    "trian": """\
error: there is no verb `trian`; did you mean `train`?
hint: dcli --help
""",
    "train": """\
error: train: nothing says what to train
hint: dcli train exp=digits, or another recipe of dcli list exp
""",
    "train -m": """\
error: train: nothing says what to train
hint: dcli train exp=digits, or another recipe of dcli list exp
""",
    "train trainer.stpes=3": """\
error: trainer.stpes: there is no such key; did you mean `trainer.steps`?
hint: dcli train --help
""",
    "train +trainer.stpes=3": """\
error: trainer.stpes: there is no such key; did you mean `trainer.steps`?
hint: dcli train --help
""",
    "train +typo=1": """\
error: typo: there is no such key
hint: dcli train --help
""",
    "train lr=1": """\
error: lr: there is no such key; did you mean `optimizer.lr`?
hint: dcli train --help
""",
    "train steps=10": """\
error: steps: there is no such key; did you mean `trainer.steps`?
hint: dcli train --help
""",
    "train smapler=heun": """\
error: smapler: there is no such key; did you mean `sampler`?
hint: dcli train --help
""",
    "train sampler=huen": f"""\
error: sampler: there is no `huen`; did you mean `heun`?
hint: {TAKES}
""",
    "train optimizer.lr=-1 optimizer.eps=-1": """\
error: optimizer.lr: must be > 0, got -1.0
""",
    "train optimizer.lr=inf sampler.steps=1e30": """\
error: sampler.steps: expected an integer, got 1e+30
error: optimizer.lr: expected a number, got inf
""",
    "sample ckpt=x guidance=[{name:cfg}]": """\
error: a choice such as guidance= takes a name, or a list of names
hint: dcli sample --help
""",
    "train seed=0,1": """\
error: seed: several values, `0,1`
hint: -m for a sweep, or seed=[0,1] for a list
""",
    "train +seed=1": """\
error: seed: is there already
hint: seed=... without `+`
""",
    "train digits": """\
error: `digits`: expected key=value
hint: exp=digits for a recipe, or dcli train --help
""",
    "train init=runs/lr=1": """\
error: init: the value `runs/lr=1` cannot be read
hint: quote it twice: "init='runs/lr=1'"
""",
    "train --stepz": """\
error: unrecognized arguments: --stepz; did you mean `trainer.steps=...`?
hint: dcli train --help
""",
    "train trainer.steps=": """\
error: trainer.steps: expected an integer, got ''
""",
    "train trainer.steps=abc trainer.precision=bf17 every.log=0 trainer.batch=0": """\
error: trainer.steps: expected an integer, got 'abc'
error: trainer.precision: expected one of `auto`, `fp32`, `bf16`, `fp16`, got 'bf17'
error: trainer.batch: must be >= 1, got 0
error: every.log: must be >= 1, got 0
""",
    "train seed=${nope}": """\
error: seed: Interpolation key 'nope' not found
""",
    "train name=../x": """\
error: name: must be letters, digits and `._-`, got '../x'
""",
    "train plugins=[nofile.py]": """\
error: plugins: nofile.py: there is no such file
""",
    "train network.chanels=3 sampler.steps=0 optimizer.lr=abc": """\
error: network: `unet` takes no `chanels`; did you mean `channels`?
hint: `unet` takes `channels`, `multipliers`, `blocks`, `attention`, `heads`, `dropout`
error: sampler.steps: must be >= 1, got 0
error: optimizer.lr: expected a number, got 'abc'
""",
    "train process.schedule.name=linaer": """\
error: process.schedule: there is no `linaer`; did you mean `linear`?
hint: dcli list schedule
""",
    "sample": """\
error: ckpt: a value is needed
hint: ckpt=runs/<name>
""",
    "sample ckpt=x steps=5 nfe=9": """\
error: nfe: give steps= or nfe=, not both
""",
    "sample dig.x": """\
error: `dig.x`: expected key=value
hint: ckpt=dig.x for a run, or dcli sample --help
""",
    "sample runs/x": """\
error: `runs/x`: expected key=value
hint: ckpt=runs/x for a run, or dcli sample --help
""",
    "check runs/x": """\
error: `runs/x`: expected key=value
hint: exp=runs/x for a recipe, or dcli check --help
""",
    "train --steps 100": """\
error: unrecognized arguments: --steps; did you mean `trainer.steps=100`?
hint: dcli train --help
""",
    "train --stepz=100": """\
error: unrecognized arguments: --stepz=100; did you mean `trainer.steps=100`?
hint: dcli train --help
""",
    "train --lr=1e-3": """\
error: unrecognized arguments: --lr=1e-3; did you mean `optimizer.lr=1e-3`?
hint: dcli train --help
""",
    "sample ckpt=x --steps 100": """\
error: unrecognized arguments: --steps; did you mean `steps=100`?
hint: dcli sample --help
""",
    "sample ckpt=x process=ddpm": """\
error: process: `dcli sample` takes no `process`
hint: dcli sample --help
""",
    "sample ckpt=x sampler=heun sampler.chrun=40": """\
error: sampler: `heun` takes no `chrun`; did you mean `churn`?
hint: `heun` takes `grid`, `steps`, `churn`, `churn_min`, `churn_max`, `churn_noise`
""",
    "train process=cold": """\
error: process: there is no `cold`
hint: process= takes cold_blur, cold_desaturate, cold_fade, cold_mask, cold_pixelate
""",
    "list sampler heun euler": """\
error: list: one role, and one name of it, got sampler heun euler
hint: dcli list sampler heun
""",
    "list smapler": """\
error: list: there is no role `smapler`; did you mean `sampler`?
hint: dcli list
""",
}


@pytest.mark.parametrize("line", REFUSALS)
def test_a_refusal_teaches_and_leaves_nothing(
    line: str, dcli: Dcli, tmp_path: Path
) -> None:
    outcome = dcli(*line.split())
    assert outcome.err == REFUSALS[line]
    assert (outcome.code, outcome.out) == (2, "")
    assert not list(tmp_path.iterdir())


def test_check_looks_for_the_other_data_of_a_fade(dcli: Dcli) -> None:
    fade = ("process=cold_fade", "process.operator.towards=nowhere")
    outcome = dcli("check", "dataset.labels=false", *fade)
    assert outcome.code == 3 and "nowhere does not exist" in outcome.err


def test_a_path_without_its_key_is_given_it(dcli: Dcli) -> None:
    Path("runs/x").mkdir(parents=True)
    told = "error: `runs/x`: a path without its key\nhint: ckpt=runs/x\n"
    assert dcli("sample", "runs/x").err == told
    assert dcli("sample", "ckpt=runs/y", "runs/x").err == told
    assert "exp=runs/x for a recipe" in dcli("train", "runs/x").err


@pytest.mark.parametrize("out", ["/proc/x", "file/x", "file"])
def test_a_run_folder_that_cannot_be_made_is_another_path(
    out: str, dcli: Dcli, tmp_path: Path
) -> None:
    Path("file").write_text("mine")
    got = dcli("train", "dataset=toy2d", "network=mlp", f"out={out}")
    assert got.code == 6 and got.err.startswith("error[IO]: "), got.err
    assert got.err.endswith("\nhint: out=<a folder that can be made>\n")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
