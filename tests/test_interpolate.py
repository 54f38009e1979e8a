"""Ways between two draws of a prior, and `dcli sample interpolate=`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Dcli
from hypothesis import given
from hypothesis import strategies as st
from oracles import rows
from PIL import Image
from scipy import stats

from diffusion_cli import config
from diffusion_cli.cli import main
from diffusion_cli.core import Spec
from diffusion_cli.errors import ConfigError
from diffusion_cli.processes import Process
from diffusion_cli.processes.arcs import circle, slerp

N = 4000
HALF = torch.full((N,), 0.5)


def two(shape: tuple[int, ...], n: int = N) -> tuple[torch.Tensor, torch.Tensor]:
    rng = rows(n)
    return rng.child("a").normal((n, *shape)), rng.child("b").normal((n, *shape))


@pytest.mark.parametrize("way", [slerp, circle])
@pytest.mark.parametrize("shape", [(1,), (2,), (3, 4, 4)])
def test_a_way_begins_and_ends_exactly(way, shape):
    a, b = two(shape)
    assert torch.equal(way(a, b, torch.zeros(N)), a)
    end = way(a, b, torch.ones(N))
    assert torch.equal(end, b) if way is slerp else torch.allclose(end, b, atol=1e-6)


@given(st.floats(-3, 3), st.floats(0.01, 3.1), st.floats(0, 1), st.floats(0.1, 10))
def test_slerp_turns_and_scales_evenly(start, turn, share, size):
    """In the plane: the angle is linear in the share, and so is the log of the norm."""

    def at(angle, norm):
        point = [norm * math.cos(angle), norm * math.sin(angle)]
        return torch.tensor([point], dtype=torch.float64)

    w = torch.tensor([share], dtype=torch.float64)
    x = slerp(at(start, 1.0), at(start + turn, size), w)
    expected = at(start + share * turn, size**share)
    assert torch.allclose(x, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("d", [2, 16])
def test_slerp_keeps_the_law_of_directions(d):
    """The square of a coordinate of a uniform direction is Beta(1/2, (d - 1) / 2)."""
    a, b = two((d,))
    x = slerp(a, b, HALF)
    square = (x[:, 0] / x.norm(dim=1)).square()
    law = stats.beta(0.5, (d - 1) / 2)
    assert stats.kstest(square.numpy(), law.cdf).pvalue > 0.01
    straight = (a + b).norm(dim=1).mean() / 2
    sound, short = (x.norm(dim=1).mean() / a.norm(dim=1).mean(), straight / d**0.5)
    assert sound == pytest.approx(1, abs=0.12) and short < 0.75


def test_the_circle_keeps_any_normal_law():
    """Of every share: covariance A A^T, whatever it is."""
    factor = torch.tensor([[2.0, 0.0], [1.5, 0.1]])
    a, b = (x @ factor.T for x in two((2,), 40_000))
    for share in (0.2, 0.5):
        x = circle(a, b, torch.full((len(a),), share))
        assert torch.allclose(x.T.cov(), factor @ factor.T, atol=0.12)
        assert stats.kstest(x[:, 0].numpy() / 2.0, "norm").pvalue > 0.01


@pytest.mark.parametrize("a", [[1.0, 0.0], [0.0, 0.0]])
@pytest.mark.parametrize("b", [[1.0, 0.0], [-1.0, 0.0], [1.0, 1e-12], [0.0, 0.0]])
def test_degenerate_arcs_are_finite(a, b):
    x = slerp(torch.tensor([a]), torch.tensor([b]), torch.tensor([0.3]))
    assert bool(x.isfinite().all()) and float(x.norm()) <= 1.0


REFUSED = {
    **dict.fromkeys(("mask", "mask_count", "uniform", "d3pm", "edit"), "two tokens"),
    "cold_desaturate": "mixture of two draws",
}
PROCESSES = sorted(path.stem for path in config.folder().glob("process/*.yaml"))


def built(name: str, **changes: Any) -> Process:
    """The process of a yaml, fitted to noise."""
    node = config.read(config.folder() / "process" / f"{name}.yaml")["process"]
    tokens = REFUSED.get(name) == "two tokens"
    data = Spec((8,), kind="tokens", vocab=17) if tokens else Spec((3, 8, 8))
    process = config.roles()["process"].build({**node, **changes}, data=data)
    if not tokens:
        process.fit([rows(64).normal((64, 3, 8, 8))])
    return process


@pytest.mark.parametrize("name", PROCESSES)
def test_every_process_has_a_way_or_says_why_not(name):
    """In the middle, norms are those of the prior: their means within four errors."""
    process = built(name)
    if name in REFUSED:
        with pytest.raises(ConfigError, match=REFUSED[name]):
            process.between(torch.zeros(0, 8), torch.zeros(0, 8), torch.zeros(0))
        return
    a, b = (process.prior((N, 3, 8, 8), rows(N).child(end)) for end in "ab")
    x = process.between(a, b, HALF)
    assert x.shape == a.shape and x.dtype == a.dtype
    start, middle = (y.flatten(1).double().norm(dim=1).log() for y in (a, x))
    error = (start.var() / N + middle.var() / N).sqrt()
    assert abs(float(middle.mean() - start.mean())) < 4 * float(error) + 1e-3


@pytest.mark.parametrize("law", ["box", "tanh", "student"])
def test_a_law_of_radii_has_a_way_and_a_box_has_none(law):
    process = built("radial", law={"name": law})
    a, b = (process.prior((8, 3, 8, 8), rows(8).child(end)) for end in "ab")
    if law == "box":
        with pytest.raises(ConfigError, match="mixture of two draws"):
            process.between(a, b, HALF[:8])
        return
    norms = torch.stack([y.flatten(1).norm(dim=1) for y in (a, b)])
    x = process.between(a, b, HALF[:8]).flatten(1).norm(dim=1)
    assert torch.allclose(x, norms.prod(0).sqrt(), rtol=1e-5)


SMALL = "dataset=digits network.channels=16 trainer.steps=3 trainer.batch=8"
SMALL += " every.preview=0 every.log=3 trainer.workers=0 device=cpu objective.drop=0.1"
FAST = ["precision=fp32", "device=cpu", "steps=4", "format=npz"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for name in ("flow", "ddpm"):
        words = [*SMALL.split(), f"process={name}", f"out={folder / name}"]
        assert main(["train", *words]) == 0
    words = "dataset=digit_tokens process=mask trainer.steps=1 trainer.batch=2"
    more = "every.preview=0 trainer.workers=0 device=cpu"
    assert main(["train", *words.split(), *more.split(), f"out={folder / 'mask'}"]) == 0
    return folder


def drawn(dcli: Dcli, run: Path, *words: str) -> dict[str, np.ndarray]:
    got = dcli("sample", f"ckpt={run}", *FAST, *words)
    assert got.code == 0, got.err
    with np.load(Path(got.out.strip()) / "samples.npz") as file:
        return dict(file)


def test_ends_are_the_first_samples_of_the_seeds(runs: Path, dcli: Dcli) -> None:
    """In one batch or several, through a third seed, with one label all the way."""
    one = ["batch=3", "label=4"]
    way = drawn(dcli, runs / "flow", "n=7", "interpolate=[3,7,5]", *one)
    for place, seed in ((0, 3), (3, 7), (6, 5)):
        end = drawn(dcli, runs / "flow", "n=1", f"seed={seed}", *one)["samples"][0]
        assert np.abs(way["samples"][place] - end).max() < 1e-5
    assert (way["labels"] == 4).all()
    steps = np.abs(np.diff(way["samples"], axis=0)).max((1, 2, 3))
    assert (steps > 1e-3).all(), "every sample is another one"
    free = drawn(dcli, runs / "flow", "n=5", "interpolate=[3,7]")
    assert len(set(free["labels"])) == 1
    other = drawn(dcli, runs / "flow", "n=9", "interpolate=[3,7]")["samples"]
    assert np.abs(other[::2] - free["samples"]).max() < 1e-5, "even steps"


def test_noise_of_the_steps_is_shared(runs: Path, dcli: Dcli) -> None:
    """From a seed to itself every sample is the same one, though the sampler draws."""
    way = drawn(dcli, runs / "ddpm", "n=4", "interpolate=[3,3]")["samples"]
    assert np.abs(way - way[0]).max() < 1e-5
    apart = drawn(dcli, runs / "ddpm", "n=4", "interpolate=[3,3]", "seed=1")["samples"]
    assert np.abs(apart[0] - way[0]).max() > 1e-2


def test_between_given_images(runs: Path, dcli: Dcli) -> None:
    """Both ends come back as they were encoded."""
    pytest.importorskip("torchdiffeq")
    folder = Path("given")
    folder.mkdir()
    for i in range(3):
        pixels = (rows(3).at(i).uniform((3, 8, 8))[i] * 255).byte().numpy()
        Image.fromarray(pixels).save(folder / f"{i}.png")
    fast = [word for word in FAST if word != "steps=4"]
    words = [f"ckpt={runs / 'flow'}", *fast, "encode=given", "sampler=dopri5"]
    got = dcli("sample", *words)
    back = np.load(Path(got.out.strip()) / "samples.npz")["samples"]
    got = dcli("sample", *words, "n=5", "interpolate=[2,0]")
    assert got.code == 0, got.err
    assert "difference from what was given" not in got.err
    way = np.load(Path(got.out.strip()) / "samples.npz")["samples"]
    assert len(way) == 5
    assert np.abs(way[0] - back[2]).max() < 1e-3
    assert np.abs(way[-1] - back[0]).max() < 1e-3
    got = dcli("sample", *words, "n=5", "interpolate=[0,3]")
    assert (got.code, got.err) == (
        2,
        "error: interpolate: there is no sample 3, encode gives 3\n"
        "hint: interpolate in 0 .. 2\n",
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["interpolate=[3]"], "interpolate: must be two seeds or more, got [3]"),
        (["interpolate=3"], "interpolate: expected a list"),
        (["interpolate=[3,-1]"], "interpolate: must be in 0 .. 2^63 - 1, got [3, -1]"),
        (["interpolate=[3,4]", "n=1"], "n: must be >= 2, the seeds, got 1"),
        (["interpolate=[3,4]", "restore=x"], "interpolate: must be given without"),
    ],
)
def test_mistakes_are_told(
    words: list[str], message: str, runs: Path, dcli: Dcli
) -> None:
    got = dcli("sample", f"ckpt={runs / 'flow'}", *words)
    assert got.code == 2 and message in got.err, got.err


def test_tokens_have_nothing_between(runs: Path, dcli: Dcli) -> None:
    got = dcli("sample", f"ckpt={runs / 'mask'}", "interpolate=[0,1]")
    assert (got.code, got.err) == (
        2,
        "error: interpolate: there is nothing between two tokens\n"
        "hint: leave interpolate out\n",
    )
    assert not (runs / "mask" / "samples").exists(), "refused before anything is made"
