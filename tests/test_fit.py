"""`dcli fit`: what belongs to the weights is found once and read when they sample."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from diffusion_cli import tensorfile
from diffusion_cli.cli import main

ARGUMENTS = ("process=vp", "network.width=16", "network.depth=1", "trainer.batch=8")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "toy"
    words = ("dataset=toy2d", *ARGUMENTS, "trainer.steps=3", "trainer.precision=fp32")
    more = ("every.preview=0", "device=cpu", f"out={folder}")
    assert main(["train", *words, *more]) == 0
    return folder


def test_fit_then_sample(dcli, run):
    sample = ("sample", f"ckpt={run}", "sampler=ancestral", "steps=3", "n=4", "batch=4")
    early = dcli(*sample, "guidance=analytic", "device=cpu")
    assert early.code == 2 and f"dcli fit ckpt={run} variance=analytic" in early.err
    early = dcli(*sample, "sampler.grid.name=optimal", "device=cpu")
    assert early.code == 2 and f"dcli fit ckpt={run} variance=analytic" in early.err
    got = dcli("fit", f"ckpt={run}", "n=50", "times=7", "batch=20", "device=cpu")
    assert got.code == 0, got.err
    folder = Path(got.out.strip())
    assert folder.parent.parent == run / "derived"
    kept = folder / "values.safetensors"
    first, values = kept.read_bytes(), tensorfile.read(kept)
    fitted = got
    told = ("guidance=analytic", "sampler=ancestral")
    assert " ".join(("dcli sample", f"ckpt={run}", *told)) in got.err
    assert dcli("sample", f"ckpt={run}", *told, "steps=3", "n=4").code == 0
    for walk in (("sample", "sampler=heun"), ("tune", "sampler=eab")):
        got = dcli(*walk, f"ckpt={run}", "steps=3", "n=4", "guidance=analytic")
        assert got.code == 2 and "hint: sampler=ancestral" in got.err
    again = dcli("fit", f"ckpt={run}", "n=50", "times=7", "batch=20", "device=cpu")
    assert (again.code, again.out) == (0, fitted.out)
    assert "already fitted" in again.err and "data at" not in again.err
    assert int(values["count"]) == 50 and len(values["noise"]) == 7
    about = json.loads((folder / "manifest.json").read_text())
    assert about["n"] == 50 and about["dataset"]["name"] == "toy2d"
    kept.write_bytes(b"")
    assert dcli("fit", f"ckpt={run}", "n=50", "times=7", "batch=20").code == 0
    assert kept.read_bytes() == first
    for words in (
        ("guidance=analytic",),
        ("guidance=analytic", "guidance.source=loss"),
        ("guidance=analytic", "guidance.estimate=error", "sampler.eta=0"),
        ("sampler.grid.name=optimal",),
    ):
        got = dcli(*sample, *words, "device=cpu", "format=npz")
        assert got.code == 0, got.err


def test_fit_refuses(dcli, run):
    assert "classes" not in dcli("fit", "--help").out
    for words, message in (
        (("n=1",), "n: must be >= 2"),
        (("variance=npr",), "variance: expected one of `analytic`"),
        (("steps=3",), "steps: there is no such key"),
        (("dataset.name=digits",), "its samples are"),
        (("dataset.shape=nothing",), "dataset.shape"),
    ):
        got = dcli("fit", f"ckpt={run}", "device=cpu", *words)
        assert got.code == 2 and message in got.err, got.err


def test_training_itself_has_nothing_fitted(dcli, run):
    words = ("dataset=toy2d", *ARGUMENTS, "guidance=analytic", "device=cpu")
    got = dcli("train", *words)
    assert got.code == 2 and "belongs to a trained run" in got.err
