"""Which noise goes with which datum (T12.2-T12.4, T12.6), and pairs from samples."""

import math
from dataclasses import asdict

import numpy as np
import pytest
import torch
from choices import node
from oracles import Finite, Mixture, gaussian, number, rows
from tiny import Setup, control, place, tiny  # noqa: F401  # fixtures

from diffusion_cli import assemble, checkpoint
from diffusion_cli.commands import sample, train
from diffusion_cli.core import Point, Spec
from diffusion_cli.couplings import couplings
from diffusion_cli.datasets import datasets
from diffusion_cli.denoiser import Denoiser
from diffusion_cli.errors import ConfigError, DataError
from diffusion_cli.rebuild import rebuild
from diffusion_cli.requests import SampleSettings
from diffusion_cli.rng import Rng
from diffusion_cli.samplers import samplers

ot = pytest.importorskip("ot")


def coupling(**own):
    return couplings.build({"name": "minibatch_ot", "size": 16, **own})


def walk(denoiser, x, steps, sampler="euler"):
    tree = {"name": sampler, "steps": steps, "grid": {"name": "uniform"}}
    *_, last = samplers.build(tree).trajectory(denoiser, x, rows(len(x)))
    return last


def drawn(n, d=1, seed=0):
    return rows(n, seed).normal((n, d)).double(), rows(n, seed + 1).normal(
        (n, d)
    ).double()


class Lines(Denoiser):
    """The velocity of a monotone coupling in one dimension, between its lines."""

    def __init__(self, x0, noise):
        super().__init__()
        self.process = gaussian("straight")
        order = noise[:, 0].argsort()
        self.x0, self.noise = x0[order, 0], noise[order, 0]

    def forward(self, x, t, **cond):
        along = (1 - t) * self.x0 + t * self.noise
        assert bool((along.diff() > 0).all())  # no two lines cross
        below = torch.searchsorted(along, x[:, 0].contiguous()).clamp(1, len(along) - 1)
        low, high = along[below - 1], along[below]
        part = ((x[:, 0] - low) / (high - low))[:, None]
        return Point(torch.lerp(self.x0[below - 1, None], self.x0[below, None], part))


def test_transport_in_one_dimension_makes_one_step_exact():
    """T12.2: monotone pairs have straight flows; independent ones have not."""
    x0, noise = drawn(16)
    x0 = x0 + x0.sign()
    x0, paired, _ = coupling()(x0, noise, rows(16))
    lines = Lines(x0, paired)
    torch.testing.assert_close(walk(lines, paired, 1), x0)
    torch.testing.assert_close(walk(lines, paired, 40), x0)
    cloud = Finite(gaussian("straight"), x0)  # the flow of the independent coupling
    one, many = walk(cloud, noise, 1), walk(cloud, noise, 400)
    assert float((one - many).abs().mean()) > 0.5


@pytest.mark.parametrize("method", ["exact", "sinkhorn"])
def test_transport_is_cheaper_than_none_and_sorts_in_one_dimension(method):
    """T12.6."""
    for d in (1, 3):
        x0, noise = drawn(32, d)
        same, paired, _ = coupling(method=method, reg=0.3)(x0, noise, rows(32))
        assert torch.equal(same, x0)
        assert (x0 - paired).square().sum() < 0.9 * (x0 - noise).square().sum()
        if method == "exact":
            assert torch.equal(paired.sort(0).values, noise.sort(0).values) or d > 1
            blocks = zip(x0.split(16), paired.split(16), noise.split(16), strict=True)
            for own, got, before in blocks:
                assert torch.equal(
                    got.sum(1).sort().values, before.sum(1).sort().values
                )
                if d == 1:
                    ranks = own[:, 0].argsort().argsort()
                    assert torch.equal(got[:, 0], before[:, 0].sort().values[ranks])


def test_sinkhorn_tends_to_both_ends():
    """Little entropy is the assignment, much of it the independent coupling."""
    x0, noise = drawn(16)
    hard = coupling()(x0, noise, rows(16))[1]
    soft = coupling(method="sinkhorn", reg=0.05)(x0, noise, rows(16))[1]
    costs = [float((x0 - each).square().mean()) for each in (noise, soft, hard)]
    assert costs[1] - costs[2] < 0.1 * (costs[0] - costs[2])
    loose = coupling(method="sinkhorn", reg=1e6)
    picks = torch.stack([loose(x0, noise, rows(16, s))[1] for s in range(100)])
    assert float((picks.mean(0) - noise.mean()).abs().max()) < 5 * noise.std() / 10


def test_noise_moves_within_a_label_alone():
    x0, noise = drawn(32, 2)
    label = rows(32, 3).integers(3, (32,))
    x0, paired, cond = coupling()(x0, noise, rows(32), label=label)
    assert torch.equal(cond["label"], label)
    for one in range(3):
        for block in (slice(0, 16), slice(16, 32)):
            own = label[block] == one
            got, had = paired[block][own], noise[block][own]
            assert torch.equal(got.sum(1).sort().values, had.sum(1).sort().values)


def test_no_split_changes_a_pair_and_broken_blocks_are_refused():
    x0, noise = drawn(32, 2)
    assert not torch.equal(coupling()(x0, noise, rows(32))[1], noise)
    whole = coupling()(x0, noise, rows(32))[1]
    parts = [
        coupling()(
            x0[i : i + 16], noise[i : i + 16], rows(32).of(torch.arange(i, i + 16))
        )[1]
        for i in (0, 16)
    ]
    assert torch.equal(whole, torch.cat(parts))
    with pytest.raises(ConfigError, match="does not divide micro-batches of 8 samples"):
        coupling()(x0[:8], noise[:8], rows(8))


class Correlated(Denoiser):
    """FIX-G, data N(0, s2), with noise of correlation c to its datum."""

    def __init__(self, s2, c):
        super().__init__()
        self.process, self.s2, self.c = gaussian("straight"), s2, c

    def forward(self, x, t, **cond):
        k, s = self.process.schedule(t), self.s2**0.5
        both = k.alpha * k.sigma * self.c * s
        var = k.alpha**2 * self.s2 + k.sigma**2 + 2 * both
        return Point((k.alpha * self.s2 + k.sigma * self.c * s) / var * x)


@pytest.mark.parametrize("c", [-0.6, 0.0, 0.5, 0.95])
def test_every_coupling_leads_to_the_data(c):
    """T12.4: the end has variance s2 for all c, though states in between differ."""
    for s2 in (0.25, 4.0):
        data, one = Correlated(s2, c), torch.ones(1, 1).double()
        end = walk(data, one, 400, "heun")
        assert float(end) == pytest.approx(s2**0.5, rel=2e-3)
        k = data.process.schedule(number(0.5))
        middle = data.process.velocity(data(one, number(0.5)), one, number(0.5))
        gain = k.dalpha * k.alpha * s2 + k.dsigma * k.sigma
        gain = gain + c * s2**0.5 * (k.dalpha * k.sigma + k.dsigma * k.alpha)
        var = (k.alpha**2 * s2 + k.sigma**2) + 2 * c * s2**0.5 * k.alpha * k.sigma
        assert float(middle) == pytest.approx(float(gain / var))


def test_reflow_in_one_dimension_is_straight():
    """T12.3: the flow's own pairs are monotone, so one step is the whole flow."""
    data = Mixture(
        gaussian("straight"),
        torch.tensor([0.3, 0.7]),
        torch.tensor([[-1.0], [1.5]]),
        0.04,
    )
    noise = torch.linspace(-2.5, 2.5, 200, dtype=torch.float64)[:, None]
    x0 = walk(data, noise, 150, "heun")
    again = Lines(x0, noise)
    torch.testing.assert_close(walk(again, noise, 1), x0)
    between = torch.tensor([[-1.37], [0.02], [1.11]], dtype=torch.float64)
    one, many = walk(again, between, 1), walk(again, between, 50)
    torch.testing.assert_close(one, many, rtol=0, atol=1e-6)
    exact = walk(data, between, 150, "heun")
    torch.testing.assert_close(one, exact, rtol=0, atol=0.02)
    assert float((walk(data, between, 1) - exact).abs().max()) > 0.5


def draw(folder, out, **own):
    values = asdict(SampleSettings(str(folder))) | {
        "n": 40,
        "batch": 16,
        "steps": 3,
        "seed": 5,
        "format": ["npz"],
        "out": str(out),
        "device": "cpu",
        "sampler": None,
        "guidance": None,
    }
    sample.run(values | own, [])


def test_pairs_bring_the_noise_that_they_were_drawn_from(tmp_path, place):  # noqa: F811
    parts = {
        "process": {"name": "gaussian", "schedule": {"name": "straight"}},
        "parametrisation": {"name": "velocity"},
        "sampler": {"name": "euler", "grid": {"name": "uniform"}},
        "objective": {**node("objective", "velocity")},
    }
    train.run(tiny(out=str(tmp_path / "one"), **parts), [])
    draw(tmp_path / "one", tmp_path / "drawn")
    found = checkpoint.load(tmp_path / "one")
    data = datasets.build({"name": "pairs", "path": str(tmp_path / "drawn")})
    data.prepare()
    index = torch.tensor([33, 2, 17])
    x0, cond = data.batch(index, rows(3))
    own = couplings.build({"name": "pairs"})
    process = gaussian("straight")
    noise = process.noise(x0, own.stream(rows(3), **cond))
    whole = process.prior((48, 2), Rng(5, torch.arange(48)).child("sample"))
    torch.testing.assert_close(noise, whole[index], rtol=0, atol=0)
    assert own(x0, noise, rows(3), **cond)[2] == {}
    built = rebuild(found, steps=3)
    *_, again = built.sampler.trajectory(built.denoiser, noise, rows(3))
    torch.testing.assert_close(again, x0, rtol=1e-5, atol=1e-5)
    pairs = {"dataset": {"name": "pairs", "path": str(tmp_path / "drawn")}}
    second = {**parts, **pairs, "coupling": {"name": "pairs"}}
    train.run(tiny(out=str(tmp_path / "two"), **second), [])
    draw(tmp_path / "two", tmp_path / "again", format=["png", "grid", "npz"])
    assert len(np.load(tmp_path / "again" / "samples.npz")["samples"]) == 40
    for wrong, message in (
        ({"coupling": {"name": "independent"}}, "need each other"),
        (
            {
                "process": {
                    "name": "radial",
                    "law": {"name": "tanh"},
                    "schedule": {"name": "straight"},
                }
            },
            "were drawn with the noise of",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            assemble.parts(tiny(**{**second, **wrong}), data.spec)
    with pytest.raises(DataError, match="holds no pairs"):
        datasets.build({"name": "pairs", "path": str(tmp_path)}).prepare()


def test_a_coupling_that_nobody_asks_is_refused():
    values = tiny(
        objective={"name": "classify", "time": {"name": "uniform"}},
        parametrisation={"name": "classes"},
        coupling={"name": "minibatch_ot", "size": 4, "method": "exact", "reg": 0.05},
    )
    with pytest.raises(ConfigError) as caught:
        assemble.parts(values, Spec((2,), classes=2))
    assert "objective `classify` takes no `minibatch_ot`" in caught.value.render()


def test_training_with_transport_does_not_depend_on_the_micro_batches():
    parts = {
        "coupling": {"name": "minibatch_ot", "size": 4, "method": "exact", "reg": 0.05},
        "network": {"name": "mlp", "width": 16, "depth": 1},
    }
    whole, split = (Setup(parts=parts, micro_batch=size).train(3) for size in (8, 4))
    for p, q in zip(whole.model.parameters(), split.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-3)
    assert math.isfinite(float(sum(p.sum() for p in whole.model.parameters())))
