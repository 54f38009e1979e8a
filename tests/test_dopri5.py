"""The adaptive sampler: T4.2, T4.4, T4.5, its counts and its frames."""

from collections import Counter

import pytest
import torch
from oracles import SCHEDULES, Mixture, NormalData, eight, gaussian, number, rows
from torch import nn

from diffusion_cli.errors import ConfigError
from diffusion_cli.odes import integrate
from diffusion_cli.processes import Flow
from diffusion_cli.samplers import samplers

WEIGHTS = torch.tensor([0.3, 0.5, 0.2])
MEANS = torch.tensor([[-2.0], [0.5], [3.0]])


def build(**own):
    return samplers.build({"name": "dopri5", **own})


def inverse(data, value, t):
    """x with F_t(x) = value, by bisection."""
    low, high = (torch.full_like(value, edge) for edge in (-600.0, 600.0))
    for _ in range(80):
        middle = (low + high) / 2
        below = data.cdf(middle[:, None], t) < value
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return low


@pytest.mark.parametrize("schedule", ["karras", "vp", "straight"])
def test_the_quantiles_of_a_mixture_are_carried_along(schedule):
    """T4.2, FIX-Q: F_t(x_t) is constant along the ODE."""
    process = gaussian(schedule)
    data = Mixture(process, WEIGHTS, MEANS, torch.tensor([0.04, 0.25, 0.1]))
    levels = torch.linspace(0.01, 0.99, 41, dtype=torch.float64)
    x, sampler = inverse(data, levels, number(1.0))[:, None], build()
    *_, before, _ = sampler.trajectory(data, x, rows(41))
    exact = inverse(data, levels, number(process.span[0]))
    assert float((before[:, 0] - exact).abs().max()) < 1e-3
    assert 50 < sampler.calls(0) < 250


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_error_follows_the_tolerance_on_every_path(schedule):
    """T4.4."""
    process = gaussian(schedule)
    data, x = NormalData(process, 0.25, 0.7), process.prior((16, 2), rows(16)).double()
    exact = data.exact(x, number(1.0), number(process.span[0]))
    for tolerance in (1e-5, 1e-8):
        sampler = build(rtol=tolerance, atol=tolerance)
        *_, before, _ = sampler.trajectory(data, x, rows(16))
        assert float((before - exact).abs().max()) < 30 * tolerance


@pytest.mark.parametrize("schedule", ["vp", "karras", "straight"])
def test_there_and_back_again(schedule):
    """T4.5: 0 -> 1 -> 0 returns the input; x_1 has the variance of the prior."""
    process, n = gaussian(schedule), 400
    data = eight(process)
    low = number(process.span[0])
    x0 = data.sample(n, rows(n))
    start = process.corrupt(x0, low, rows(n, 1).normal((n, 2), torch.float64))
    ends = process.chart(torch.tensor(process.span, dtype=torch.float64))

    def field(clock, y):
        t = process.instant(clock)
        x = process.chart(t).scale * y
        return process.slope(data(x, t), x, t)

    own = {"rtol": 1e-7, "atol": 1e-7, "counts": Counter()}
    x = ends.scale[1] * integrate(field, start / ends.scale[0], ends.clock, **own)[-1]
    spread = x / data.process.end.sigma
    assert float(spread.std()) == pytest.approx(1, abs=4 / (4 * n) ** 0.5)
    sampler = build(rtol=1e-7, atol=1e-7)
    *_, back, _ = sampler.trajectory(data, x, rows(n))
    torch.testing.assert_close(back, start, rtol=0, atol=1e-6 * max(1, ends.clock[1]))


def test_it_counts_what_it_did_and_ends_with_the_belief():
    asked = []

    class Counted(nn.Module):
        def __init__(self, process):
            super().__init__()
            self.process, self.inner = process, NormalData(process)

        def forward(self, x, t):
            asked.append((t, x.dtype))
            return self.inner(x, t)

    process, sampler = gaussian("vp"), build(frames=5)
    denoiser = Counted(process)
    states = list(sampler.trajectory(denoiser, rows(2).normal((2, 2)), rows(2)))
    assert len(states) == 6 and len(asked) == sampler.calls(0)
    assert all(state.dtype == torch.float32 for state in states)
    assert {dtype for _, dtype in asked} == {torch.float32}  # the network's own
    counted = sampler.counted()
    assert set(counted) == {"accepted", "rejected"}
    assert len(asked) == 3 + 6 * sum(counted.values())
    low, high = process.span
    assert all(low * (1 - 1e-12) <= float(t) <= high for t, _ in asked)
    assert float(asked[-1][0]) == low
    expected = denoiser.inner(states[-2], asked[-1][0]).mean
    assert torch.equal(states[-1], expected)
    list(sampler.trajectory(denoiser, rows(2).normal((2, 2)), rows(2)))
    assert sampler.calls(0) == len(asked)  # so far: over all that it drew


def test_a_sample_depends_on_its_batch_within_the_tolerance_alone():
    process = gaussian("karras")
    data, x = eight(process), process.prior((64, 2), rows(64)).double()
    *_, whole, _ = build().trajectory(data, x, rows(64))
    own = rows(64).of(torch.tensor([3]))
    *_, alone, _ = build().trajectory(data, x[3:4], own)
    torch.testing.assert_close(whole[3:4], alone, rtol=0, atol=1e-3)


def test_frames_do_not_change_the_steps():
    process = gaussian("straight")
    data, x = eight(process), rows(8).normal((8, 2))
    few, many = build(frames=1), build(frames=40)
    *_, one = few.trajectory(data, x, rows(8))
    *_, other = many.trajectory(data, x, rows(8))
    assert torch.equal(one, other) and few.counted() == many.counted()


def test_it_needs_a_flow_and_sound_tolerances():
    assert build().needs is Flow and build().steps == 0
    for own in ({"rtol": 0.0}, {"atol": -1.0}, {"frames": 0}):
        with pytest.raises(ConfigError, match=next(iter(own))):
            build(**own)
