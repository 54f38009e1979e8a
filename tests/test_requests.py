"""What decides samples is part of their request; what is forged is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Dcli

from diffusion_cli import artifact, checkpoint, tensorfile
from diffusion_cli.derived import Derived

TINY = (
    "dataset=toy2d dataset.size=300 process=vp network=mlp network.width=16 "
    "network.depth=1 trainer.steps=2 trainer.batch=8 every.preview=0"
).split()
SAMPLE = ("sample", "ckpt=run", "n=4", "steps=2", "sampler=ancestral", "format=npz")


def folders() -> set[str]:
    return {path.name for path in Path("run/samples").iterdir() if path.is_dir()}


def drawn(dcli: Dcli, *words: str) -> None:
    outcome = dcli(*SAMPLE, *words)
    assert outcome.code == 0, outcome.err


@pytest.fixture
def run(dcli: Dcli) -> Dcli:
    assert dcli("train", *TINY, "out=run").code == 0
    return dcli


def test_another_fit_makes_other_samples(run: Dcli) -> None:
    for seed, count in ((0, 1), (0, 1), (1, 2)):
        fit = run("fit", "ckpt=run", "n=20", "times=3", f"seed={seed}")
        assert fit.code == 0, fit.err
        drawn(run, "guidance=analytic")
        assert len(folders()) == count


def test_another_worse_run_makes_other_samples(run: Dcli) -> None:
    for seed, count in ((0, 1), (0, 1), (1, 2)):
        words = (*TINY, f"seed={seed}", "out=worse", "fresh=true")
        assert run("train", *words).code == 0
        drawn(run, "guidance=auto", "guidance.run=worse")
        assert len(folders()) == count


def test_another_file_makes_other_samples(run: Dcli) -> None:
    for value, count in ((0.5, 1), (0.5, 1), (0.7, 2)):
        np.savez("y.npz", samples=np.full((1, 2), value, np.float32))
        drawn(run, "guidance=inpaint", "guidance.path=y.npz")
        assert len(folders()) == count


def test_a_seed_changes_the_samples_and_not_the_data(run: Dcli) -> None:
    """Two seeds are compared with the same data, so their spread is the samples'."""
    results = [
        json.loads(
            run("eval", "ckpt=run", "metric=w2", "n=20", "json=true", f"seed={s}").out
        )["w2"]
        for s in (0, 1)
    ]
    assert results[0]["w2_floor"] == results[1]["w2_floor"]
    assert results[0]["w2"] != results[1]["w2"]


FORGED = {
    "falling": {"times": torch.tensor([0.9, 0.5])},
    "empty": {name: torch.zeros(0) for name in ("times", "noise", "error", "clean")},
    "longer": {"error": torch.zeros(7)},
    "flat": {"error": torch.zeros(2, 2)},
    "infinite": {"error": torch.tensor([0.5, torch.inf])},
    "late": {"times": torch.tensor([0.5, 500.0])},
    "several": {"high": torch.ones(3)},
}


@pytest.mark.parametrize("name", [*FORGED, "missing", "unlisted", "changed"])
def test_a_forged_fit_is_refused(run: Dcli, name: str) -> None:
    two = torch.tensor([0.5, 0.6])
    values = {key: two for key in ("noise", "error", "clean")}
    values |= {"times": torch.tensor([0.1, 0.9])}
    values |= {key: torch.tensor(1.0) for key in ("data", "low", "high")}
    derived = Derived(checkpoint.load("run"))
    values |= FORGED.get(name, {})
    if name == "missing":
        del values["error"]
    derived.write("analytic", values, {})
    place = derived.folder / "analytic"
    if name == "unlisted":
        (place / "manifest.json").write_text(json.dumps({"files": {}}))
    if name == "changed":
        data = b"".join(tensorfile.content(values | {"error": 2 * two}))
        (place / "values.safetensors").write_bytes(data)
        with pytest.raises(Exception, match="sha256"):
            artifact.verify(place)
    outcome = run(*SAMPLE, "guidance=analytic")
    assert outcome.code == 4 and "BUG" not in outcome.err, outcome.err


def test_a_noisy_way_back_is_refused(run: Dcli) -> None:
    np.savez("x.npz", samples=np.zeros((2, 2), np.float32))
    for sampler in ("pc", "sde_dpmpp", "euler_maruyama", "annealed_langevin"):
        outcome = run("sample", "ckpt=run", "encode=x.npz", f"sampler={sampler}")
        assert outcome.code == 2 and "adds noise on the way back" in outcome.err


def test_a_metric_twice_is_refused(run: Dcli) -> None:
    outcome = run("eval", "ckpt=run", "+metric@metric.a=mmd", "+metric@metric.b=mmd")
    assert outcome.code == 2 and "`mmd` is there twice" in outcome.err
