"""Guidance: neutral scales, bound conditions, and the golden number G11."""

import pytest
import torch
from oracles import NormalData, gaussian, number, rows

from diffusion_cli.core import Categorical, Normal, Point
from diffusion_cli.denoiser import Denoiser
from diffusion_cli.guidance import guidances
from diffusion_cli.samplers import samplers


class Labelled(Denoiser):
    """N(1, 0.3^2) with any label, N(0, 1.2^2) without one."""

    def __init__(self, process):
        super().__init__()
        self.process, self.calls = process, 0
        self.known = NormalData(process, 0.09, 1.0)
        self.unknown = NormalData(process, 1.44, 0.0)

    def forward(self, x, t, label):
        self.calls += 1
        none = (label < 0)[:, None]
        known, unknown = self.known(x, t).mean, self.unknown(x, t).mean
        return Point(torch.where(none, unknown, known))


def test_golden_guidance_contracts_far_below_the_data():
    """G11, T6.1: w = 2, that is scale 3, from sigma 80 to 1e-3."""
    process = gaussian("karras", sigma_min=1e-3)
    x = torch.tensor([[0.0], [80.0]], dtype=torch.float64)
    inner, labels = Labelled(process), torch.zeros(2, dtype=torch.int64)
    guided = guidances.build({"name": "cfg", "scale": 3.0}, denoiser=inner)
    sampler = samplers.build(
        {"name": "eab", "steps": 2000, "grid": {"name": "log_sigma"}}
    )
    path = sampler.trajectory(guided.given(label=labels), x, rows(2))
    *_, before, _ = path
    low, high = before.flatten().tolist()
    assert high - low == pytest.approx(0.0187541, rel=1e-4)
    assert low == pytest.approx(1.1242981, rel=1e-4)


@pytest.mark.parametrize(("scale", "label"), [(0.0, -1), (1.0, 2)])
def test_neutral_scales(scale, label):
    process = gaussian("vp")
    inner, x, t = Labelled(process), rows(3).normal((3, 1)), number(0.5)
    guided = guidances.build({"name": "cfg", "scale": scale}, denoiser=inner)
    labels = torch.full((3,), 2)
    expected = inner(x, t, label=torch.full((3,), label)).mean
    torch.testing.assert_close(guided(x, t, label=labels).mean, expected)


@pytest.mark.parametrize("shape", [(), (3,)])
def test_one_batched_call_and_bound_conditions_commute(shape):
    process = gaussian("vp")
    inner, x = Labelled(process), rows(3).normal((3, 1))
    t, labels = torch.full(shape, 0.5, dtype=torch.float64), torch.tensor([0, 1, -1])
    guided = guidances.build({"name": "cfg", "scale": 2.0}, denoiser=inner)
    free = guided(x, t, label=labels).mean
    assert inner.calls == 1
    assert torch.equal(guided.given(label=labels)(x, t).mean, free)
    assert torch.equal(free[2], inner(x, t, label=torch.tensor([-1] * 3)).mean[2])


def test_the_large_wrapper_is_small_for_points():
    process, x = gaussian("vp"), rows(3).normal((3, 2))
    data = NormalData(process, 0.25)
    for std, ratio in ((0.0, 0.0), (1.0, None)):
        q = guidances.build({"name": "large", "data_std": std}, denoiser=data)(
            x, number(0.4)
        )
        k = process.schedule(number(0.4))
        assert isinstance(q, Normal)
        expected = k.sigma**2 / (k.alpha**2 + k.sigma**2) if ratio is None else 0
        assert float(q.var) == pytest.approx(float(expected))


def test_beliefs_move_toward_each_other():
    x0 = torch.zeros(2, 3, dtype=torch.int64)
    logits = rows(2).normal((2, 3, 5)), rows(2, 1).normal((2, 3, 5))
    pairs = [
        (Point(logits[0]), Point(logits[1])),
        (Normal(logits[0], torch.ones(1)), Normal(logits[1], torch.ones(1))),
        (Categorical(logits[0]), Categorical(logits[1])),
    ]
    for q, other in pairs:
        for w, expected in ((0.0, q), (1.0, other)):
            torch.testing.assert_close(q.toward(other, w).mean, expected.mean)
        first, second = q.chunk(2)
        torch.testing.assert_close(torch.cat((first.mean, second.mean)), q.mean)
    assert Categorical(logits[0]).nll(x0).shape == (2, 3)


def test_beliefs_draw_what_they_say():
    n = 20_000
    normal = Normal(torch.full((n, 1), 2.0), torch.tensor(9.0)).draw(rows(n))
    assert abs(float(normal.mean()) - 2) < 4 * 3 / n**0.5
    assert abs(float(normal.std()) - 3) < 4 * 3 / (2 * n) ** 0.5
    logits = torch.tensor([0.5, 0.3, 0.2]).log().expand(n, 1, 3)
    share = Categorical(logits).draw(rows(n)).flatten().bincount() / n
    assert share.tolist() == pytest.approx([0.5, 0.3, 0.2], abs=4 * 0.5 / n**0.5)


def test_clipping_changes_only_what_lies_outside():
    process, x = gaussian("linear"), 3 * rows(50).normal((50, 2))
    data, t = NormalData(process, 4.0), number(0.3)
    free = data(x, t).mean
    clipped = guidances.build({"name": "clip"}, denoiser=data)(x, t).mean
    assert torch.equal(clipped, free.clamp(-1, 1)) and not torch.equal(clipped, free)
    wide = guidances.build({"name": "clip", "low": -99.0, "high": 99.0}, denoiser=data)
    assert torch.equal(wide(x, t).mean, free)
