"""DDPM and DDIM against their golden numbers (T1.2, T1.3, T2)."""

from itertools import pairwise

import pytest
import torch
from oracles import (
    SCHEDULES,
    NormalData,
    Still,
    gaussian,
    number,
    rows,
)
from walks import UNIFORM, build, last

from diffusion_cli.core import Point
from diffusion_cli.guidance import guidances
from diffusion_cli.samplers import grids


def ancestral_variance(steps, s2, large=False, **how):
    """The variance of the chain started from the exact variance at t = 1.

    The goldens of the large variance include its noise in the last step.
    """
    how = {"final": "draw"} | how if large else how
    process = gaussian("linear")
    data = NormalData(process, s2)
    denoiser = guidances.build({"name": "large"}, denoiser=data) if large else data
    times = grids.build(UNIFORM)(process, steps)
    variance = data.variance(times[0])
    zero, one = torch.zeros(1, 1).double(), torch.ones(1, 1).double()
    for t, s in pairwise(times):

        def step(x, z, t=t, s=s):
            return process.reverse(denoiser(x, t), x, t, s, Still(z), **how)

        gain, spread = step(one, 0.0) - step(zero, 0.0), step(zero, 1.0)
        variance = gain**2 * variance + spread**2
    return float(variance)


@pytest.mark.parametrize(
    ("steps", "ddim", "small", "large"),
    [
        (5, 0.06893, 0.06166, 0.47052),
        (10, 0.136862418, 0.11121, 0.34692),
        (50, 0.22221, 0.19722, 0.26763),
        (1000, 0.24849, 0.24613, 0.25085),
    ],
)
def test_golden_variances(steps, ddim, small, large):
    """G3, G4, G5 at s2 = 1/4; T1.2."""
    assert ancestral_variance(steps, 0.25, eta=0.0) == pytest.approx(ddim, abs=6e-6)
    assert ancestral_variance(steps, 0.25) == pytest.approx(small, abs=6e-6)
    assert ancestral_variance(steps, 0.25, large=True) == pytest.approx(large, abs=6e-6)


def test_golden_variances_of_wide_data():
    """G6."""
    assert ancestral_variance(10, 4.0, eta=0.0) == pytest.approx(2.95511, abs=6e-6)
    assert ancestral_variance(10, 4.0) == pytest.approx(2.38943, abs=6e-6)
    assert ancestral_variance(10, 4.0, large=True) == pytest.approx(3.19096, abs=6e-6)


@pytest.mark.parametrize("steps", [3, 10, 77])
def test_small_is_exact_for_a_point_and_large_for_unit_normals(steps):
    """T1.3."""
    assert ancestral_variance(steps, 0.0) == pytest.approx(0, abs=1e-12)
    drawn = ancestral_variance(steps, 1.0, large=True)
    assert drawn == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_eta_one_is_ddpm_small(name):
    """T2.1, with DDPM's own formulas for the mean and the variance."""
    process = gaussian(name)
    x, x0 = (rows(8, i).normal((8, 3)).double() for i in (0, 1))
    for t, s in ((0.9, 0.7), (0.5, 0.499), (0.2, 0.01)):
        a, b = process.schedule(number(t)), process.schedule(number(s))
        beta = 1 - (a.alpha / b.alpha) ** 2
        mean = b.alpha * beta / a.sigma**2 * x0
        mean = mean + (1 - beta).sqrt() * b.sigma**2 / a.sigma**2 * x
        std = (beta * b.sigma**2 / a.sigma**2).sqrt()
        for z in (0.0, 1.0):
            got = process.reverse(Point(x0), x, number(t), number(s), Still(z))
            torch.testing.assert_close(got, mean + z * std, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", SCHEDULES)
def test_ddim_is_eulers_method_in_the_noise_level(name):
    """T2.2: u_s = u_t + (c_s - c_t) (u_t - x_0) / c_t with u = x / alpha."""
    process = gaussian(name)
    x, x0 = (rows(8, i).normal((8, 3)).double() for i in (0, 1))
    for t, s in ((0.9, 0.7), (0.5, 0.3)):
        a, b = process.schedule(number(t)), process.schedule(number(s))
        u, c, d = x / a.alpha, a.sigma / a.alpha, b.sigma / b.alpha
        euler = b.alpha * (u + (d - c) * (u - x0) / c)
        got = process.reverse(Point(x0), x, number(t), number(s), Still(1), eta=0.0)
        torch.testing.assert_close(got, euler, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("steps", [5, 10, 50])
def test_ddim_contracts_by_the_cosines(steps):
    """T2.3: theta_t = atan2(sigma, alpha s); std = s prod cos(theta_i - theta_i+1)."""
    process, s2 = gaussian("linear"), 0.25
    k = process.schedule(grids.build(UNIFORM)(process, steps))
    theta = torch.atan2(k.sigma, k.alpha * s2**0.5)
    expected = s2 * theta.diff().cos().prod() ** 2
    got = ancestral_variance(steps, s2, eta=0.0)
    assert got == pytest.approx(float(expected), rel=1e-9)


def test_ddim_converges_at_first_order():
    """T2.4 on the smooth VP path, where doubling the steps halves the error."""
    process = gaussian("vp")
    data, x = NormalData(process, 0.25), rows(16).normal((16, 2)).double()
    exact = data.exact(x, number(1.0), number(0.0))
    errors = []
    for steps in (800, 1600):
        got = last(build("ancestral", steps, {"name": "log_sigma"}, eta=0.0), data, x)
        errors.append(float((got - exact).norm()))
    floor = number(process.span[0])
    rest = data.exact(x, number(1.0), floor)
    errors = [
        error - float((data(rest, floor).mean - exact).norm()) for error in errors
    ]
    assert errors[0] / errors[1] == pytest.approx(2.0, abs=0.05)


def test_encoding_and_decoding_returns_at_first_order():
    """T2.5: the same step with s > t encodes; the round trip halves with the step."""
    process = gaussian("vp")
    data, x = NormalData(process, 0.25), rows(16).normal((16, 2)).double() / 2
    gaps = []
    for steps in (400, 800):
        times = torch.linspace(0.01, 1.0, steps + 1, dtype=torch.float64)
        z = x
        for t, s in [*pairwise(times), *pairwise(times.flip(0))]:
            z = process.reverse(data(z, t), z, t, s, Still(0), eta=0.0)
        gaps.append(float((z - x).norm()))
    assert gaps[0] / gaps[1] == pytest.approx(2.0, abs=0.1)
