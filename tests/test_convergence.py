"""Orders of convergence, and equal paths by other names (T4.4, T11, T12.1)."""

import math
from itertools import pairwise

import pytest
import torch
from oracles import (
    SMOOTH,
    NormalData,
    Still,
    gaussian,
    number,
    rows,
)
from walks import UNIFORM, VARIANTS, build, last

from diffusion_cli.samplers import samplers

RHO = {"name": "rho", "rho": 7.0}


# those that draw, those without steps and those of tokens have files of their own
ELSEWHERE = {"annealed_langevin", "dopri5", "euler_maruyama", "pc"}
ELSEWHERE |= {"cached", "confident", "first_hitting", "restart"}


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
    """The first steps know few beliefs: at order 4 their errors begin to show."""
    grid = {"name": "log_sigma", "sigma_max": 40.0}
    got, claimed = observed_order(variant, schedule, grid, [160, 320])
    assert got > min(claimed, 3.2) - 0.2


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("schedule", ["straight", "trigonometric"])
def test_convergence_from_no_signal_at_all(variant, schedule):
    """alpha = 0 at t = 1, where sigma / alpha is infinite and the first step DDIM's."""
    got, _ = observed_order(variant, schedule, UNIFORM, [80, 160])
    assert got > 0.8


def test_every_sampler_is_measured():
    measured = {variant["name"] for variant in VARIANTS}
    assert set(samplers.names()) <= measured | ELSEWHERE


@pytest.mark.parametrize("name", ["euler", "heun", "rk4", "dpmpp"])
def test_the_last_step_returns_the_belief(name):
    """T11.3."""
    for schedule in SMOOTH:
        process = gaussian(schedule)
        data, x = NormalData(process), process.prior((4, 2), rows(4)).double()
        sampler = build(name, 5)
        *_, before, after = sampler.trajectory(data, x, rows(4))
        t = sampler.grid(process, 5)[-2]
        torch.testing.assert_close(after, data(before, t).mean, rtol=0, atol=0)


@pytest.mark.parametrize("order", [2, 3, 4])
def test_the_last_step_of_eab_is_closer_than_the_belief(order):
    process = gaussian("karras", sigma_min=0.005)
    data, x = NormalData(process, 0.04, m=0.7), process.prior((8, 2), rows(8)).double()
    sampler = build("eab", 160, {"name": "asinh"}, order=order)
    *_, before, after = sampler.trajectory(data, x, rows(8))
    t = sampler.grid(process, 160)[-2]
    end, least = data.exact(before, t, number(0.0)), data(before, t).mean
    assert float((least - end).norm()) > 20 * float((after - end).norm()) > 0


@pytest.mark.parametrize("most", [1.5, 5.0, 20.0, 80.0])
def test_eab_begins_with_the_noise_as_it_was(most, monkeypatch):
    """At most 0.6 of the error at 8 calls, wherever the trajectory begins."""
    process = gaussian("karras", sigma_max=most)
    data, x = NormalData(process, 0.5, m=0.4), process.prior((8, 2), rows(8)).double()
    exact, found = data.exact(x, number(1.0), number(0.0)), []
    sampler = build("eab", 8, {"name": "asinh"})
    for _ in range(2):
        *_, end = sampler.trajectory(data, x, rows(8))
        found.append(float((end - exact).norm()))
        monkeypatch.setattr(type(sampler), "before", lambda self, first: ())
    assert 0 < found[0] < 0.6 * found[1]


def test_with_one_belief_the_last_step_of_eab_returns_it():
    process = gaussian("vp")
    data, x = NormalData(process), process.prior((4, 2), rows(4)).double()
    sampler = build("eab", 5, order=1)
    *_, before, after = sampler.trajectory(data, x, rows(4))
    belief = data(before, sampler.grid(process, 5)[-2]).mean
    torch.testing.assert_close(after, belief, rtol=1e-12, atol=1e-12)


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
