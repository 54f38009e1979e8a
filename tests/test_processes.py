"""Laws of processes and schedules, over the registries; golden numbers G1, G2, G7."""

from itertools import pairwise

import pytest
import torch
from oracles import SCHEDULES, SMOOTH, Finite, NormalData, Still, gaussian, number, rows

from diffusion_cli.core import Point
from diffusion_cli.processes.affine import schedules

HALF = torch.tensor([0.1234, 0.3771, 0.5003, 0.7702, 0.9514], dtype=torch.float64)


def test_every_schedule_is_tested():
    assert set(SCHEDULES) == set(schedules.names())


@pytest.mark.parametrize("name", SCHEDULES)
def test_derivatives_equal_finite_differences(name):
    schedule, h = gaussian(name).schedule, 1e-6
    t = HALF if name in SMOOTH else (HALF * 1000).floor() / 1000 + 5e-4  # inside a cell
    k, up, down = schedule(t), schedule(t + h), schedule(t - h)
    torch.testing.assert_close(
        k.dalpha, (up.alpha - down.alpha) / (2 * h), rtol=1e-6, atol=1e-8
    )
    torch.testing.assert_close(
        k.dsigma, (up.sigma - down.sigma) / (2 * h), rtol=1e-6, atol=1e-8
    )


@pytest.mark.parametrize("name", SCHEDULES)
def test_time_inverts_the_noise_level(name):
    process = gaussian(name)
    t = torch.cat((HALF, number(process.span[0])[None]))
    k = process.schedule(t)
    closed = process.schedule.time(k.sigma / k.alpha)
    bisected = super(type(process.schedule), process.schedule).time
    torch.testing.assert_close(closed, t, rtol=1e-9, atol=0)
    if name in SMOOTH:
        torch.testing.assert_close(
            bisected(k.sigma / k.alpha), t, rtol=1e-9, atol=1e-15
        )


@pytest.mark.parametrize("name", SCHEDULES)
def test_data_at_0_prior_at_1_and_less_signal_in_between(name):
    process = gaussian(name)
    start = process.schedule(number(0.0))
    assert start.alpha == 1 and start.sigma == 0
    x0, noise = rows(3).normal((3, 2)), rows(3, 1).normal((3, 2))
    zero = torch.zeros(3, dtype=torch.float64)
    assert torch.equal(process.corrupt(x0, zero, noise), x0)
    k = process.schedule(torch.linspace(*process.span, 200, dtype=torch.float64))
    assert bool(((k.alpha / k.sigma).diff() < 0).all())
    end = process.corrupt(x0.double(), torch.ones(3), noise.double())
    rest = end - process.end.sigma * noise.double()
    torch.testing.assert_close(rest, process.end.alpha * x0.double())
    assert float(process.end.alpha / process.end.sigma) < 0.021
    prior = process.prior((20_000, 2), rows(20_000))
    assert abs(float(prior.std() / process.end.sigma) - 1) < 4 / 40_000**0.5


def test_golden_schedules():
    """G1, G2."""
    one = number(1.0)
    linear, cosine, vp = (
        gaussian(name).schedule for name in ("linear", "cosine", "vp")
    )
    assert float(linear(one).alpha ** 2) == pytest.approx(4.035830e-05, rel=1e-6)
    assert float(cosine(one).alpha ** 2) == pytest.approx(2.428767e-09, rel=1e-6)
    first = cosine(number(1e-3)).alpha ** 2
    assert float(1 - first) == pytest.approx(4.128422e-05, rel=1e-6)
    assert float(vp(one).alpha) == pytest.approx(6.571587e-03, rel=1e-6)
    for t, ratio in ((1.0, 152.16697), (1e-3, 1.0485993e-02)):
        k = vp(number(t))
        assert float(k.sigma / k.alpha) == pytest.approx(ratio, rel=1e-6)


def test_the_linear_table_is_ddpms():
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    square = (1 - betas).cumprod(0)
    k = gaussian("linear").schedule(torch.arange(1, 1001).double() / 1000)
    torch.testing.assert_close(k.alpha**2, square, rtol=1e-12, atol=0)


def test_the_exponential_schedule_is_the_limit_of_its_product():
    steps = 100_000
    i = torch.arange(1, steps + 1, dtype=torch.float64)
    # sqrt(1 - 0.02 i / T) at T = 1000 has sum of rates 10 T / 2 = 5 at every T
    product = (torch.log1p(-(0.02 * 1000 / steps) * i / steps) / 2).sum().exp()
    limit = gaussian("exponential").schedule(number(1.0)).alpha
    assert float(product) == pytest.approx(float(limit), rel=1e-3)


@pytest.mark.parametrize("name", ["vp", "subvp", "ve", "straight", "karras"])
def test_diffusion_follows_from_the_schedule(name):
    """T3.1: g^2 = 2 alpha sigma d(sigma/alpha)/dt, and the SDEs' own formulas."""
    process, h = gaussian(name), 1e-6
    up, down, k = (process.schedule(HALF + d) for d in (h, -h, 0))
    slope = (up.sigma / up.alpha - down.sigma / down.alpha) / (2 * h)
    got = process.diffusion(HALF)
    torch.testing.assert_close(got, 2 * k.alpha * k.sigma * slope, rtol=1e-6, atol=0)
    beta, total = 0.1 + 19.9 * HALF, 0.1 * HALF + 9.95 * HALF**2
    known = {
        "vp": beta,
        "subvp": beta * -torch.expm1(-2 * total),
        "ve": 2 * number(5000).log() * (0.01 * 5000**HALF) ** 2,
    }
    if name in known:
        torch.testing.assert_close(got, known[name], rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", SCHEDULES)
def test_velocity_is_the_time_derivative_of_the_path(name):
    process = gaussian(name)
    x0, noise = rows(5).normal((5, 2)).double(), rows(5, 1).normal((5, 2)).double()
    x, k = process.corrupt(x0, HALF, noise), process.at(HALF, x0)
    velocity = process.velocity(Point(x0), x, HALF)
    torch.testing.assert_close(velocity, k.dalpha * x0 + k.dsigma * noise)


@pytest.mark.parametrize("name", SCHEDULES)
def test_slope_is_the_derivative_in_the_chart(name):
    process, h = gaussian(name), 1e-7
    t = HALF if name in SMOOTH else (HALF * 1000).floor() / 1000 + 5e-4
    data = NormalData(process)
    x = rows(5).normal((5, 2)).double()

    def coordinates(shift):
        chart = process.chart(t + shift)
        moved = data.exact(x, t[:, None], t[:, None] + shift)
        return moved / chart.scale[:, None], chart.clock[:, None]

    (y1, c1), (y0, c0) = coordinates(h), coordinates(-h)
    got = process.slope(data(x, t), x, t)
    torch.testing.assert_close(got, (y1 - y0) / (c1 - c0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", SCHEDULES)
def test_reverse_returns_the_frequencies_of_the_data(name):
    points = torch.tensor([[-1.0, 0.5], [1.0, -0.5], [1.0, 1.0]])[[0, 1, 1, 2]]
    process, n = gaussian(name), 4000
    denoiser = Finite(process, points)
    x, low = process.prior((n, 2), rows(n)), process.span[0]
    times = torch.linspace(1, low, 100, dtype=torch.float64)
    times = (times * 1000).round() / 1000 if name not in SMOOTH else times
    times = torch.cat((times, torch.zeros(1, dtype=torch.float64)))
    for i, (t, s) in enumerate(pairwise(times)):
        x = process.reverse(denoiser(x, t), x, t, s, rows(n).at(i))
    nearest = torch.cdist(x, points).argmin(1)
    assert float(torch.cdist(x, points).min(1).values.max()) < 0.05
    share = (nearest.bincount(minlength=4)[[0, 1, 3]] / n).tolist()
    error = 4 * (0.25 / n) ** 0.5
    assert share == pytest.approx([0.25, 0.5, 0.25], abs=error)


@pytest.mark.parametrize("s2", [0.25, 1.0, 4.0])
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("name", ["linear", "karras"])
def test_optimal_variance_is_exact_at_five_steps(name, eta, s2):
    """G7, T5.2: an exact belief with its variance keeps normal data normal."""
    process = gaussian(name)
    data = NormalData(process, s2, spread=True)
    times = torch.tensor([1.0, 0.8, 0.6, 0.4, 0.3, 0.0], dtype=torch.float64)
    variance = data.variance(times[0])
    for t, s in pairwise(times):
        variance = recursion(process, data, variance, t, s, eta=eta, final="draw")
    assert float(variance) == pytest.approx(s2, rel=1e-10)


def recursion(process, data, variance, t, s, **how):
    """Var[x_s] from Var[x_t] through one linear reverse step."""
    zero, one = torch.zeros(1, 1).double(), torch.ones(1, 1).double()

    def step(x, z):
        return process.reverse(data(x, t), x, t, s, Still(z), **how)

    gain, spread = step(one, 0.0) - step(zero, 0.0), step(zero, 1.0) - step(zero, 0.0)
    return gain**2 * variance + spread**2


def test_diffuse_keeps_the_marginal():
    process = gaussian("vp")
    t, s, x0 = number(0.3), number(0.7), torch.full((50_000, 1), 0.5)
    x = process.corrupt(x0, t.expand(50_000), rows(50_000).normal((50_000, 1)))
    later, k = process.diffuse(x, t, s, rows(50_000, 1)), process.schedule(s)
    error = 4 / 50_000**0.5
    assert abs(float(later.mean() - k.alpha * 0.5)) < error
    assert abs(float(later.std() - k.sigma)) < error


@pytest.mark.parametrize("name", SCHEDULES)
def test_instant_inverts_the_clock_of_the_chart(name):
    process = gaussian(name)
    t = torch.cat((HALF, torch.tensor(process.span, dtype=torch.float64)))
    found = process.instant(process.chart(t).clock)
    torch.testing.assert_close(found, t, rtol=1e-9, atol=0)
    assert float(found.max()) <= 1


def test_flow_matching_may_keep_a_little_noise():
    """FM-OT: alpha = 1 - t, sigma = sigma_min + (1 - sigma_min) t."""
    process, least = gaussian("straight", sigma_min=0.01), 0.01
    t = torch.cat((HALF, torch.tensor([0.0, 1e-6], dtype=torch.float64)))
    k = process.schedule(t)
    torch.testing.assert_close(k.sigma, least + (1 - least) * t)
    torch.testing.assert_close(k.alpha, 1 - t)
    assert float(k.dsigma[0]) == pytest.approx(1 - least)
    torch.testing.assert_close(process.schedule.time(k.sigma / k.alpha), t)
    assert float(process.schedule.time(number(0.005))) == 0  # below what there is
    assert float(process.schedule.time(number(float("inf")))) == 1
    assert process.end.sigma == 1 and process.end.alpha == 0
    x0, noise = rows(3).normal((3, 2)).double(), rows(3, 1).normal((3, 2)).double()
    start = process.corrupt(x0, number(0.0), noise)
    torch.testing.assert_close(start, x0 + least * noise)
    data, x = NormalData(process), rows(3).normal((3, 2)).double()
    moved = (data.exact(x, HALF[:3, None], HALF[:3, None] + 1e-6) - x) / 1e-6
    velocity = process.velocity(data(x, HALF[:3]), x, HALF[:3])
    torch.testing.assert_close(velocity, moved, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("k", [0.5, 3.0])
def test_a_shift_for_larger_images(k):
    """t' = k t / (1 + (k - 1) t): log k more in logit t, and all that follows."""
    shifted, h = gaussian("straight", shift=k).schedule, 1e-6
    scales, up, down = shifted(HALF), shifted(HALF + h), shifted(HALF - h)
    moved = torch.logit(scales.sigma) - torch.logit(HALF)
    torch.testing.assert_close(moved, torch.full_like(HALF, k).log())
    torch.testing.assert_close(scales.alpha, 1 - scales.sigma)
    slope = (up.sigma - down.sigma) / (2 * h)
    torch.testing.assert_close(scales.dsigma, slope, rtol=1e-7, atol=0)
    torch.testing.assert_close(scales.dalpha, -slope, rtol=1e-7, atol=0)
    torch.testing.assert_close(shifted.time(scales.sigma / scales.alpha), HALF)
    end = shifted(number(1.0))
    assert end.sigma == 1 and end.alpha == 0
    assert float(shifted.time(number(float("inf")))) == 1


def test_the_table_of_betas_converges_to_the_vp_path():
    """T3.5: beta_i = beta(i / N) / N gives alpha(t) to O(1 / N)."""
    t = torch.tensor([0.2, 0.5, 1.0], dtype=torch.float64)
    exact = gaussian("vp").schedule(t).alpha.log()
    errors = [
        (gaussian("linear", levels=levels).schedule(t).alpha.log() - exact).abs()
        for levels in (1000, 2000)
    ]
    torch.testing.assert_close(
        errors[0] / errors[1], torch.full_like(t, 2), rtol=0.05, atol=0
    )


def test_scales_follow_a_time_that_changes_in_place():
    process, t = gaussian("vp"), torch.tensor([0.2, 0.7], dtype=torch.float64)
    first = process.scales(t)
    assert process.scales(t) is first
    t.add_(0.1)
    assert torch.equal(process.scales(t).alpha, process.schedule(t).alpha)
    assert not torch.equal(process.scales(t).alpha, first.alpha)


def test_scales_of_a_time_with_a_gradient_may_be_differentiated_twice():
    process = gaussian("vp")
    t = torch.tensor([0.2, 0.7], dtype=torch.float64)
    process.scales(t)
    t.requires_grad_()
    slopes = [torch.autograd.grad(process.scales(t).alpha.sum(), t)[0] for _ in "ab"]
    assert torch.equal(*slopes)
    torch.testing.assert_close(slopes[0], process.scales(t).dalpha.detach())
