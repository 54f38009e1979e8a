"""`dcli sample encode=` and `restore=`: samples that start from given ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Dcli

from diffusion_cli import checkpoint
from diffusion_cli.place import trained
from diffusion_cli.rng import Rng

POINTS = (
    "dataset=toy2d dataset.size=300 process=vp network=mlp network.width=32 "
    "network.depth=1 trainer.steps=60 trainer.batch=64 trainer.ema=[5] "
    "every.preview=0 parametrisation=v objective=snr_plus_one out=run"
).split()
COLD = (
    "dataset=digits dataset.labels=false process=cold_blur network=unet_digits "
    "network.channels=8 trainer.steps=2 trainer.batch=8 every.preview=0 out=cold"
).split()


def drawn(folder: str) -> np.ndarray:
    return np.load(Path(folder.strip()) / "samples.npz")["samples"]


def told(err: str) -> float:
    (line,) = [line for line in err.splitlines() if "root mean square" in line]
    return float(line.rpartition(": ")[2].partition(",")[0])


@pytest.fixture
def points(dcli: Dcli) -> np.ndarray:
    """A trained run of points, and twelve points of its data in `given.npz`."""
    assert dcli("train", *POINTS).code == 0
    x = np.random.default_rng(0).normal(size=(12, 2)).astype(np.float32) / 2
    np.savez("given.npz", samples=x)
    return x


def test_what_is_encoded_is_drawn_again(dcli: Dcli, points: np.ndarray) -> None:
    words = ("ckpt=run", "encode=given.npz", "format=npz", "dtype=float64")
    exact = dcli("sample", *words, "sampler=dopri5")
    assert exact.code == 0, exact.err
    x = drawn(exact.out)
    assert x.shape == points.shape
    np.testing.assert_allclose(x, points, atol=2e-3)
    assert told(exact.err) < 1e-3 and "accepted" in exact.err
    errors = [
        told(dcli("sample", *words, "sampler=heun", f"steps={steps}").err)
        for steps in (8, 32)
    ]
    assert errors[1] < errors[0] / 4
    few = dcli("sample", *words, "sampler=heun", "steps=2").err
    assert told(few) > 0.1 and "steps=<more>" in few
    assert "steps=<more>" not in exact.err
    other = dcli("sample", *words, "sampler=dopri5", "batch=5").out
    np.testing.assert_allclose(drawn(other), x, atol=1e-3)


def test_restoring_starts_at_the_severity(dcli: Dcli, points: np.ndarray) -> None:
    errors = []
    for severity in ("0.05", "0.9"):
        words = ("restore=given.npz", f"severity={severity}", "format=npz")
        outcome = dcli("sample", "ckpt=run", *words, "steps=20")
        assert outcome.code == 0, outcome.err
        errors.append(told(outcome.err))
    assert errors[0] < 0.2 < errors[1]
    about = json.loads((Path(outcome.out.strip()) / "about.json").read_text())
    assert about["n"] == 12


def test_degraded_samples_are_taken_as_they_are(dcli: Dcli) -> None:
    trained_now = dcli("train", *COLD)
    assert trained_now.code == 0 and "process=cold (blur)" in trained_now.err
    clean = dcli("sample", "ckpt=cold", "n=3", "steps=2", "format=[png,npz]")
    folder = clean.out.strip()
    words = ("ckpt=cold", f"restore={folder}/samples.npz", "severity=0.4", "format=npz")
    one = dcli("sample", *words)
    assert one.code == 0, one.err
    other = dcli("sample", *words, "degraded=true")
    assert drawn(one.out).shape == (3, 1, 8, 8)
    assert not np.array_equal(drawn(one.out), drawn(other.out))
    # what the first run spoilt, spoilt beforehand, leads to the same
    process = trained(checkpoint.load("cold")).process
    x0 = torch.from_numpy(drawn(folder))
    t = torch.tensor(0.4, dtype=torch.float64)
    x = process.corrupt(x0, t, process.noise(x0, Rng(0, torch.arange(3))))
    np.savez("spoilt.npz", samples=x.numpy())
    words = ("ckpt=cold", "severity=0.4", "degraded=true", "format=npz")
    again = dcli("sample", *words, "restore=spoilt.npz")
    assert np.array_equal(drawn(again.out), drawn(one.out))
    about = json.loads((Path(one.out.strip()) / "about.json").read_text())
    gaps = about["differences"]
    spoilt = float((x - x0).double().square().mean().sqrt())
    assert gaps["spoilt"] == pytest.approx(spoilt)
    restored = np.square(drawn(one.out) - x0.numpy()).mean() ** 0.5
    assert gaps["drawn"] == pytest.approx(float(restored), rel=1e-6)
    assert f", {spoilt:.3g} when spoilt" in one.err
    whole = dcli("sample", *words, "restore=spoilt.npz", "severity=1")
    assert whole.code == 0, whole.err  # colour for grey images starts at the very end
    between = dcli("sample", *words, "restore=spoilt.npz", "severity=0.397")
    assert "this process knows 0.4" in between.err
    assert np.array_equal(drawn(between.out), drawn(one.out))


def test_what_was_spoilt_lies_beside_the_samples(dcli: Dcli) -> None:
    assert dcli("train", *COLD).code == 0
    clean = dcli("sample", "ckpt=cold", "n=3", "steps=2").out.strip()
    words = ("ckpt=cold", "severity=0.4", "batch=2", "format=[png,grid,npz]")
    one = Path(dcli("sample", *words, f"restore={clean}").out.strip())
    spoilt = one / "spoilt"
    names = {path.name for path in spoilt.iterdir()} - {"chunks"}
    pictures = {"000000.png", "000001.png", "000002.png"}
    assert names == pictures | {"grid.png", "samples.npz"}
    # given back as spoilt, from numbers exactly, from pictures but for their rounding
    for name, far in (("spoilt/samples.npz", 1e-6), ("spoilt", 0.1)):
        again = dcli("sample", *words, f"restore={one / name}", "degraded=true")
        assert again.code == 0, again.err
        np.testing.assert_allclose(drawn(again.out), drawn(str(one)), atol=far)
        assert not (Path(again.out.strip()) / "spoilt").exists()


def test_a_hole_anywhere_must_be_known(dcli: Dcli) -> None:
    mask = ["process=cold_mask", "process.operator.centre=random"]
    assert dcli("train", *COLD, *mask).code == 0
    folder = dcli("sample", "ckpt=cold", "n=2", "steps=2", "format=npz").out.strip()
    words = ("ckpt=cold", f"restore={folder}/samples.npz")
    found = dcli("sample", *words, "n=9")
    assert found.code == 0  # the centre is the sample's own
    assert "n: every given sample is drawn, 2" in found.err
    refused = dcli("sample", *words, "degraded=true")
    assert refused.code == 2 and "where their holes are" in refused.err


def test_a_label_goes_with_what_is_restored(dcli: Dcli) -> None:
    labelled = [word for word in COLD if word != "dataset.labels=false"]
    assert dcli("train", *labelled).code == 0
    folder = dcli("sample", "ckpt=cold", "n=2", "steps=2", "format=npz").out.strip()
    words = ("ckpt=cold", f"restore={folder}/samples.npz")
    refused = dcli("sample", *words)
    assert refused.code == 2 and "a label for every sample" in refused.err
    assert dcli("sample", *words, "label=3").code == 0
    assert dcli("train", *labelled, "objective.drop=0.5", "out=free").code == 0
    free = dcli("sample", "ckpt=free", f"restore={folder}/samples.npz", "format=npz")
    labels = np.load(Path(free.out.strip()) / "samples.npz")["labels"]
    assert labels.tolist() == [-1, -1]


def test_tokens_are_restored_by_their_share(dcli: Dcli) -> None:
    words = "dataset=digit_tokens process=mask network=token_transformer_tiny "
    words += "network.width=16 network.depth=1 trainer.steps=2 trainer.batch=4 "
    words += "dataset.labels=false every.preview=0 out=tokens"
    assert dcli("train", *words.split()).code == 0
    folder = dcli("sample", "ckpt=tokens", "n=40", "steps=2").out.strip()
    for sampler in ("cached", "first_hitting", "confident"):
        words = ("sampler=" + sampler, f"restore={folder}", "severity=0.3")
        got = dcli("sample", "ckpt=tokens", *words)
        assert got.code == 0, got.err
        about = json.loads((Path(got.out.strip()) / "about.json").read_text())
        gaps = about["differences"]
        assert gaps["spoilt"] == pytest.approx(0.3, abs=5 * (0.21 / 40 / 64) ** 0.5)
        assert 0 < gaps["drawn"] < gaps["spoilt"] + 1e-9  # what is visible stays
        assert "part of the tokens other than" in got.err


LABELLED = [*POINTS, "dataset.labels=true", "objective.drop=0.3", "out=labelled"]
LABELLED += ["trainer.steps=200", "optimizer.lr=1e-2"]


def test_another_label_draws_the_same_noise_as_that_class(dcli: Dcli) -> None:
    """Encoded without a label: drawn without one it is the same, with one it moves."""
    assert dcli("train", *LABELLED).code == 0
    x = np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32) / 2
    np.savez("given.npz", samples=x)
    words = ("ckpt=labelled", "encode=given.npz", "sampler=dopri5", "dtype=float64")
    # the way back adds nothing to the error of the way there
    words += ("sampler.rtol=1e-7", "sampler.atol=1e-7")
    same = told(dcli("sample", *words).err)
    moved = told(dcli("sample", *words, "label=3").err)
    assert same < 5e-3 and moved > 10 * same, (same, moved)
    again = dcli("sample", *words, "label=3")
    assert "already done" in again.err and "rejected" in again.err
    assert ", 0 accepted" not in again.err
    assert dcli("train", *POINTS, "dataset.labels=true", "out=always").code == 0
    refused = dcli("sample", "ckpt=always", "encode=given.npz", "sampler=dopri5")
    assert refused.code == 2 and "objective.drop" in refused.err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["encode=none.npz"], 3, "none.npz"),
        (["encode=given.npz", "restore=given.npz"], 2, "without encode"),
        (["restore=given.npz", "severity=1.1"], 2, "severity: must be in (0, 1]"),
        (["restore=given.npz", "severity=1e-9"], 2, "less than this process ever"),
        (["encode=given.npz", "sampler=ancestral"], 2, "adds noise on the way back"),
        (["encode=wide.npz"], 3, "wide.npz"),
        (["severity=0.7"], 2, "severity: must be given with restore"),
        (["degraded=true"], 2, "degraded: must be given with restore"),
        (["prompt=To be"], 2, "draws no text"),
    ],
)
def test_mistakes(
    dcli: Dcli, points: np.ndarray, words: list[str], code: int, message: str
) -> None:
    np.savez("wide.npz", samples=np.zeros((4, 3), np.float32))
    outcome = dcli("sample", "ckpt=run", *words)
    assert outcome.code == code and message in outcome.err, outcome.err


def test_a_prompt_stays_and_the_rest_is_written(dcli: Dcli) -> None:
    net = "network=token_transformer_tiny"
    small = f"{net} network.width=16 network.heads=2 network.depth=1"
    words = "exp=text trainer.steps=2 trainer.batch=4 every.preview=0 out=text".split()
    assert dcli("train", *small.split(), *words).code == 0
    outcome = dcli("sample", "ckpt=text", "prompt=To be_or not", "n=2", "steps=3")
    assert outcome.code == 0, outcome.err
    for path in sorted(Path(outcome.out.strip()).glob("0*.txt")):
        text = path.read_text()
        assert text.startswith("To be") and text[6:12] == "or not"
    for prompt in ("Thou, it's", "'Thou, it\\'s'", "-: ;?!'", "\n\nO", "null"):
        outcome = dcli("sample", "ckpt=text", f"prompt={prompt}", "n=1", "steps=3")
        assert outcome.code == 0, outcome.err
        text = (Path(outcome.out.strip()) / "000000.txt").read_text()
        known = prompt.strip("'").replace("\\", "") if "Thou" in prompt else prompt
        assert prompt == "null" or text.startswith(known), (prompt, text)
    refused = dcli("sample", "ckpt=text", "prompt=5")
    assert refused.code == 2 and "does not know the character '5'" in refused.err
    refused = dcli("sample", "ckpt=text", "prompt=To be 5")
    assert refused.code == 2 and "does not know the character" in refused.err
