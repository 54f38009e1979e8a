"""Golden numbers and laws of samplers and grids (T1.2-3, T2, T4.4, T11, T12.1)."""

import math
from itertools import pairwise

import pytest
import torch
from oracles import (
    SCHEDULES,
    SMOOTH,
    Known,
    NormalData,
    Still,
    exact_fit,
    gaussian,
    number,
    rows,
)
from torch import nn

from diffusion_cli.core import Point
from diffusion_cli.errors import ConfigError
from diffusion_cli.guidance import guidances
from diffusion_cli.samplers import grids, samplers
from diffusion_cli.variance import known_times

UNIFORM = {"name": "uniform"}
RHO = {"name": "rho", "rho": 7.0}
VARIANTS = [
    {"name": "ancestral", "eta": 0.0},
    {"name": "euler"},
    {"name": "heun"},
    {"name": "dpmpp", "order": 1},
    {"name": "dpmpp", "order": 2},
    {"name": "dpmpp", "order": 3},
    {"name": "eab", "order": 1},
    {"name": "eab", "order": 2},
    {"name": "eab", "order": 3},
    {"name": "rk4"},
    {"name": "dpmpp", "order": 2, "correct": True},
    {"name": "dpmpp", "order": 3, "correct": True},
    {"name": "eab", "order": 1, "correct": True},
    {"name": "eab", "order": 3, "correct": True},
    {"name": "sde_dpmpp", "order": 3, "eta": 0.0},
]
# those that draw, those without steps and those of tokens have files of their own
ELSEWHERE = {"annealed_langevin", "dopri5", "euler_maruyama", "pc"}
ELSEWHERE |= {"cached", "confident", "first_hitting", "restart"}


def build(name, steps, grid=UNIFORM, **own):
    return samplers.build({"name": name, "steps": steps, "grid": grid, **own})


def last(sampler, denoiser, x, rng=None):
    *_, x = sampler.trajectory(denoiser, x, rng or rows(len(x)))
    return x


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


@pytest.mark.parametrize(
    ("name", "goldens"),
    [
        ("euler", {128: 2.2128e-2, 256: 1.1082e-2, 512: 5.5458e-3}),
        ("heun", {128: 8.879e-4, 256: 2.184e-4, 512: 5.416e-5}),
    ],
)
def test_golden_errors_on_edms_grid(name, goldens):
    """G8, G9, T4.4: the state before the final step, against the exact ODE."""
    process, x = gaussian("karras"), torch.full((1, 1), 80.0, dtype=torch.float64)
    data = NormalData(process, 0.25)
    for levels, golden in goldens.items():
        *_, before, _ = build(name, levels, RHO).trajectory(data, x, rows(1))
        exact = 80 * math.sqrt((0.25 + 0.002**2) / (0.25 + 80**2))
        assert abs(float(before) / exact - 1) == pytest.approx(golden, rel=2e-4)


@pytest.mark.parametrize(
    ("name", "order"),
    [("dpmpp", 1), ("dpmpp", 2), ("dpmpp", 3), ("eab", 1), ("eab", 2)],
)
def test_a_correction_costs_nothing_and_gains_an_order(name, order):
    """At 40 calls the error is at most half (and grows for `eab` of order 3)."""
    found = []
    for correct in (False, True):
        variant = {"name": name, "order": order, "correct": correct}
        process = gaussian("vp")
        data, x = NormalData(process, 0.25, m=0.7), rows(32).normal((32, 2)).double()
        sampler = build(steps=40, grid={"name": "log_sigma"}, **variant)
        assert sampler.calls(40) == 40 and sampler.order == order + correct
        *_, before, _ = sampler.trajectory(data, x, rows(32))
        exact = data.exact(x, number(1.0), sampler.grid(process, 40)[-2])
        found.append(float((before - exact).norm()))
    assert found[0] > 2 * found[1]


def observed_order(variant, schedule, grid, counts):
    process = gaussian(schedule)
    data = NormalData(process, 0.25, m=0.7)
    x = process.end.sigma * rows(32).normal((32, 2)).double()
    errors = []
    for steps in counts:
        sampler = build(steps=steps, grid=grid, **variant)
        *_, before, _ = sampler.trajectory(data, x, rows(32))
        ends = sampler.grid(process, steps)
        exact = data.exact(x, ends[0], ends[-2])
        errors.append(float((before - exact).norm()))
    slope = torch.tensor(errors).log().diff() / torch.tensor(counts).log().diff()
    return -float(slope.mean()), samplers.build({**variant, "grid": grid}).order


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("schedule", ["karras", "vp", "subvp", "ve"])
def test_order_of_convergence(variant, schedule):
    got, claimed = observed_order(variant, schedule, {"name": "log_sigma"}, [160, 320])
    assert got > claimed - 0.2


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("schedule", ["straight", "trigonometric"])
def test_order_of_convergence_on_paths_that_end_without_signal(variant, schedule):
    grid = {"name": "log_sigma", "sigma_max": 40.0}
    got, claimed = observed_order(variant, schedule, grid, [160, 320])
    assert got > claimed - 0.2


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("schedule", ["straight", "trigonometric"])
def test_convergence_from_no_signal_at_all(variant, schedule):
    """alpha = 0 at t = 1, where sigma / alpha is infinite and the first step DDIM's."""
    got, _ = observed_order(variant, schedule, UNIFORM, [80, 160])
    assert got > 0.8


def test_every_sampler_is_measured():
    measured = {variant["name"] for variant in VARIANTS}
    assert set(samplers.names()) <= measured | ELSEWHERE


@pytest.mark.parametrize("name", ["euler", "heun", "rk4", "dpmpp", "eab"])
def test_the_last_step_returns_the_belief(name):
    """T11.3."""
    for schedule in SMOOTH:
        process = gaussian(schedule)
        data, x = NormalData(process), process.prior((4, 2), rows(4)).double()
        sampler = build(name, 5)
        *_, before, after = sampler.trajectory(data, x, rows(4))
        t = sampler.grid(process, 5)[-2]
        torch.testing.assert_close(after, data(before, t).mean, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["ancestral", "euler", "heun", "rk4", "dpmpp", "eab"])
def test_paths_with_the_same_noise_levels_are_the_same(name):
    """T11.5: identical trajectories in x / alpha on a shared grid of sigma / alpha."""
    grid = {"name": "rho", "rho": 7.0, "sigma_min": 0.02, "sigma_max": 40.0}
    own = {"eta": 0.0} if name == "ancestral" else {}
    u = rows(4).normal((4, 2)).double() * 40
    found = []
    for schedule in ("vp", "ve", "karras", "subvp"):
        process = gaussian(schedule)
        sampler = build(name, 12, grid, **own)
        times = sampler.grid(process, 12)
        alphas = process.schedule(times).alpha
        path = sampler.trajectory(NormalData(process, 0.3, 0.2), alphas[0] * u, rows(4))
        found.append(
            torch.stack([x / a for x, a in zip(path, alphas[1:], strict=True)])
        )
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["ancestral", "euler", "dpmpp", "eab"])
def test_flow_matching_shares_the_same_trajectories(name):
    """T11.5 for the straight path, whose first-order steps are the same too."""
    grid = {"name": "rho", "rho": 7.0, "sigma_min": 0.02, "sigma_max": 40.0}
    own = {"eta": 0.0} if name == "ancestral" else {}
    u, found = rows(4).normal((4, 2)).double() * 40, []
    for schedule in ("karras", "straight"):
        process = gaussian(schedule)
        sampler = build(name, 12, grid, **own)
        alphas = process.schedule(sampler.grid(process, 12)).alpha
        data = NormalData(process, 0.3, 0.2)
        found.append(last(sampler, data, alphas[0] * u))
    torch.testing.assert_close(found[1], found[0], rtol=1e-10, atol=1e-10)


def test_golden_errors_of_flow_matching():
    """T12.1: m = 1.5, s2 = 1/4, x_1 = 1.7; the exact end is m + s x_1."""
    process, x = gaussian("straight"), torch.full((1, 1), 1.7, dtype=torch.float64)
    data, exact = NormalData(process, 0.25, 1.5), 1.5 + 0.5 * 1.7
    for steps, golden in {32: 0.0385, 64: 0.0195, 128: 0.0098}.items():
        error = abs(float(last(build("euler", steps), data, x)) - exact)
        assert error == pytest.approx(golden, abs=6e-5)


def test_heun_on_the_velocity_of_flow_matching():
    """T12.1, second order: every step by Heun's rule, the end taken at t = 1e-9."""
    process, data = gaussian("straight"), NormalData(gaussian("straight"), 0.25, 1.5)
    for steps, golden in {32: 3.57e-4, 64: 9.3e-5, 128: 2.4e-5}.items():
        x = torch.full((1, 1), 1.7, dtype=torch.float64)
        times = torch.linspace(1, 0, steps + 1, dtype=torch.float64).clamp(min=1e-9)
        for t, s in pairwise(times):
            slope = process.slope(data(x, t), x, t)
            ahead = x + (s - t) * slope
            x = x + (s - t) * (slope + process.slope(data(ahead, s), ahead, s)) / 2
        assert abs(float(x) - 2.35) == pytest.approx(golden, rel=0.02)


class Impulses(Still):
    """Noise 1 for row j + 1 at step j alone: the response to each step's noise."""

    def __init__(self, now=-1):
        super().__init__(0.0)
        self.now = now

    def at(self, step):
        return Impulses(step)

    def normal(self, shape, dtype=torch.float32):
        pulse = torch.zeros(shape, dtype=dtype)
        pulse[self.now + 1] = 1
        return pulse


def heun_variance(churn, noise, steps):
    """Var[x_0] of normal data under churn: a linear chain, so variances add up."""
    process = gaussian("karras")
    data = NormalData(process, 0.25)
    sampler = build("heun", steps, RHO, churn=churn, churn_noise=noise)
    x = torch.zeros(steps + 1, 1, dtype=torch.float64)
    x[0] = data.variance(number(1.0)).sqrt()
    return float(last(sampler, data, x, Impulses()).square().sum())


def test_churn_is_neutral_to_second_order():
    """T11.4: the variance error of exact beliefs stays O(h^2) whatever the churn."""
    for churn in (0.0, 5.0, 40.0):
        errors = [abs(heun_variance(churn, 1.0, steps) - 0.25) for steps in (128, 256)]
        assert errors[1] < 5e-3
        assert math.log2(errors[0] / errors[1]) > 1.7
    assert heun_variance(40.0, 1.003, 64) > heun_variance(40.0, 1.0, 64)


@pytest.mark.parametrize(
    "variant", [*VARIANTS, {"name": "heun", "churn": 20.0}], ids=str
)
@pytest.mark.parametrize("schedule", ["vp", "straight", "linear"])
def test_a_sample_does_not_depend_on_its_batch(variant, schedule):
    process = gaussian(schedule)
    data = NormalData(process, torch.tensor([0.25, 2.0]))
    sampler = build(steps=6, grid=UNIFORM, **variant)
    whole = last(sampler, data, process.prior((5, 2), rows(5)), rows(5))
    own = rows(5).of(torch.tensor([3]))
    alone = last(sampler, data, process.prior((1, 2), own), own)
    assert whole.isfinite().all() and torch.equal(whole[3:4], alone)
    assert torch.equal(
        whole, last(sampler, data, process.prior((5, 2), rows(5)), rows(5))
    )


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_calls_are_counted_exactly(variant):
    class Counted(nn.Module):
        def __init__(self, process):
            super().__init__()
            self.process, self.inner, self.calls = process, NormalData(process), 0

        def forward(self, x, t):
            self.calls += 1
            return self.inner(x, t)

    sampler, denoiser = build(steps=7, **variant), Counted(gaussian("vp"))
    states = list(sampler.trajectory(denoiser, rows(2).normal((2, 2)), rows(2)))
    assert denoiser.calls == sampler.calls(7)
    assert len(states) == 7


@pytest.mark.parametrize("name", grids.names())
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 10, 100])
def test_grids_fall_strictly_from_the_end_to_exactly_0(name, schedule, steps):
    process = gaussian(schedule)
    own = {"levels": 1000} if name == "ddim" else {}
    known = exact_fit(process, 0.25, known_times(process))
    knots = torch.linspace(1, -2, 6, dtype=torch.float64)
    context = Known({"analytic": known, f"grid-eab-{steps}": {"knots": knots}})
    times = grids.build({"name": name, **own}, context=context)(process, steps)
    assert times.dtype == torch.float64 and len(times) == steps + 1
    assert bool((times.diff() < 0).all()) and times[-1] == 0
    assert times[-2] >= (1e-3 if name == "ddim" else process.span[0] * (1 - 1e-9))
    if name != "ddim":
        assert times[0] == process.span[1]
    if process.levels and name in ("uniform", "quadratic", "ddim"):
        torch.testing.assert_close(times * 1000, (times * 1000).round())


def test_uniform_is_edms_grid_on_edms_process():
    process = gaussian("karras")
    uniform, rho = (grids.build({"name": n})(process, 18) for n in ("uniform", "rho"))
    torch.testing.assert_close(uniform, rho)
    i = torch.arange(18, dtype=torch.float64)
    sigma = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    torch.testing.assert_close(process.schedule(rho[:-1]).sigma, sigma)


def test_ddim_strides():
    times = grids.build({"name": "ddim"})(gaussian("linear"), 10)
    assert (times * 1000).round().tolist() == [*range(901, 0, -100), 0]


def test_more_steps_than_a_discrete_process_knows_are_refused():
    with pytest.raises(ValueError, match="<= 1000"):
        grids.build(UNIFORM)(gaussian("linear"), 1001)
    with pytest.raises(ConfigError, match="steps: must be >= 1"):
        build("heun", 0)
