"""Laws of the samplers of SDEs: T3.2, T3.3, T12.5, and the exact stochastic steps."""

import math
from collections import Counter

import pytest
import torch
from chains import Pulses, build, variances
from oracles import NormalData, Still, eight, gaussian, number, rows

from diffusion_cli.errors import ConfigError
from diffusion_cli.odes import integrate

QUADRATIC = "quadratic"  # its last time is the floor whatever the number of steps
LATE = {"name": "log_sigma", "sigma_max": 40.0}
CASES = [
    ("vp", QUADRATIC, 0.0, "diffusion"),
    ("vp", QUADRATIC, 0.5, "diffusion"),
    ("vp", QUADRATIC, 1.0, "diffusion"),
    ("vp", QUADRATIC, 1.0, "constant"),
    ("subvp", QUADRATIC, 1.0, "diffusion"),
    ("ve", QUADRATIC, 1.0, "diffusion"),
    ("karras", "uniform", 1.0, "diffusion"),
    ("straight", QUADRATIC, 0.0, "diffusion"),
    ("straight", QUADRATIC, 1.0, "sigma"),
    ("straight", QUADRATIC, 0.7, "constant"),
    ("straight", LATE, 1.0, "diffusion"),
    ("trigonometric", QUADRATIC, 1.0, "sigma"),
]


def expected_variance(process, model, start, end, v, noise, spread):
    """T3.2: dV/dt of REV for the score -x / v~ of a model, integrated to 1e-10.

    x' = alpha' D + sigma' (x - alpha D) / sigma with D = c x, whatever the SDE's f and
    g^2 (infinite on straight paths); kappa^2 from its definition.
    """

    def slope(t, v):
        k = process.schedule(t)
        own = k.alpha**2 * model.s2 + k.sigma**2
        c = k.alpha * model.s2 / own
        rate = k.dalpha * c + k.dsigma * (1 - k.alpha * c) / k.sigma
        g2 = 2 * k.sigma * (k.dsigma - k.sigma * k.dalpha / k.alpha)
        square = {"diffusion": g2, "sigma": 2 * k.sigma, "constant": number(2.0)}
        kappa2 = noise**2 * square[spread] if noise else number(0.0)
        return 2 * (rate + kappa2 / (2 * own)) * v - kappa2

    path = integrate(
        slope, v.reshape(1, 1), torch.stack((start, end)), rtol=1e-10, atol=1e-12,
        counts=Counter(),
    )  # fmt: skip
    return float(path[-1])


@pytest.mark.parametrize("s2", [0.25, 0.4], ids=["true score", "another score"])
@pytest.mark.parametrize(("schedule", "grid", "noise", "spread"), CASES)
def test_euler_maruyama_follows_the_variance_of_its_sde(
    schedule, grid, noise, spread, s2
):
    """T3.2, T3.3, T12.5, halfway: of order 1 to the ODE of the variance.

    For the true score that is v_t whatever the noise.
    """
    process = gaussian(schedule)
    truth, model = NormalData(process, 0.25), NormalData(process, s2)
    model.variance = truth.variance  # where the chain starts
    own, found = {"noise": noise, "spread": spread}, []
    # g^2 / sigma^2 of VE is 17: the limit needs smaller steps
    for half in (200, 400) if schedule == "ve" else (100, 200):
        sampler = build("euler_maruyama", 2 * half + 1, grid, **own)
        times = sampler.grid(process, sampler.steps)[[0, half]]
        found.append(variances(sampler, model, half)[-1])
    start = truth.variance(times[0])
    exact = expected_variance(process, model, *times, start, noise, spread)
    if s2 == 0.25:
        assert exact == pytest.approx(float(truth.variance(times[1])), rel=1e-7)
    errors = [abs(value - exact) for value in found]
    assert errors[0] / errors[1] == pytest.approx(2.0, abs=0.2)
    assert 2 * found[1] - found[0] == pytest.approx(exact, rel=3e-3)


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_the_variance_at_the_end_has_weak_order_one(noise):
    """T3.3: |Var - s2| ~ C h."""
    process, errors = gaussian("vp"), []
    data = NormalData(process, 0.25)
    end = float(data.variance(number(process.span[0])))
    for steps in (200, 400):
        sampler = build("euler_maruyama", steps, QUADRATIC, noise=noise)
        errors.append(abs(variances(sampler, data, steps - 1)[-1] - end))
    assert errors[0] / errors[1] == pytest.approx(2.0, abs=0.2)


def test_without_noise_euler_maruyama_is_eulers_method_in_time():
    process, x = gaussian("straight"), rows(4).normal((4, 2)).double()
    data = eight(process)
    got = build("euler_maruyama", 9, "uniform", noise=0.0).trajectory(data, x, rows(4))
    euler = build("euler", 9, "uniform").trajectory(data, x, rows(4))
    for one, other in zip(got, euler, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["euler_maruyama", "pc", "annealed_langevin"])
def test_infinite_noise_is_refused_with_what_would_work(name):
    straight, late = gaussian("straight"), build(name, 5, LATE)
    with pytest.raises(ConfigError, match="where alpha = 0") as caught:
        build(name, 5, "uniform").check(straight)
    assert "sampler." in caught.value.hint
    late.check(straight)
    build(name, 5, "uniform").check(gaussian("vp"))
    build("euler_maruyama", 5, "uniform", spread="sigma").check(straight)
    build("pc", 5, "uniform", predictor="ancestral").check(straight)


def test_reverse_diffusion_is_the_forward_step_read_backwards():
    """Song et al.'s formulas for VP with betas, and for VE."""
    process = gaussian("linear")
    data, x = NormalData(process, 0.3, 0.2), rows(4).normal((4, 2)).double()
    beta = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64).flip(0)
    sampler = build("pc", 1000, "uniform", corrections=0)
    path = sampler.trajectory(data, x, Still(0.7))
    for i, got in zip(range(3), path, strict=False):
        t = number((1000 - i) / 1000)
        score = process.score(data(x, t), x, t)
        x = x * (2 - (1 - beta[i]).sqrt()) + beta[i] * score + beta[i].sqrt() * 0.7
        torch.testing.assert_close(got, x, rtol=1e-9, atol=1e-12)
    process = gaussian("ve")
    data, x = NormalData(process, 0.3, 0.2), 50 * rows(4).normal((4, 2)).double()
    sampler = build("pc", 50, "uniform", corrections=0)
    got = next(iter(sampler.trajectory(data, x, Still(0.7))))
    b = process.schedule(sampler.grid(process, 50)[:2]).sigma
    square, score = (
        b[0] ** 2 - b[1] ** 2,
        process.score(data(x, number(1)), x, number(1)),
    )
    torch.testing.assert_close(got, x + square * score + square.sqrt() * 0.7)


@pytest.mark.parametrize("schedule", ["vp", "subvp", "ve"])
@pytest.mark.parametrize("predictor", ["reverse_diffusion", "euler_maruyama"])
def test_predictors_have_weak_order_one(predictor, schedule):
    """T3.3."""
    process, grid = gaussian(schedule), {"name": "rho", "rho": 7.0}
    data, errors = NormalData(process, 0.25), []
    end = float(data.variance(number(process.span[0])))
    for steps in (400, 800) if schedule == "ve" else (200, 400):
        sampler = build("pc", steps, grid, predictor=predictor, corrections=0)
        errors.append(abs(variances(sampler, data, steps - 1)[-1] - end))
    assert errors[0] / errors[1] == pytest.approx(2.0, abs=0.2)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("schedule", ["vp", "karras", "straight"])
def test_sde_dpmpp_without_noise_is_dpmpp(schedule, order):
    process = gaussian(schedule)
    x, data = process.prior((4, 2), rows(4)).double(), eight(process)
    grid = "uniform"
    own = build("sde_dpmpp", 9, grid, order=order, eta=0.0)
    other = build("dpmpp", 9, grid, order=order)
    assert own.order == order
    for one, two in zip(
        own.trajectory(data, x, rows(4)),
        other.trajectory(data, x, rows(4)),
        strict=True,
    ):
        assert torch.equal(one, two)


@pytest.mark.parametrize("schedule", ["linear", "vp", "karras", "straight"])
def test_the_first_order_of_sde_dpmpp_is_ddpm(schedule):
    """T2.1: sigma_s^2 (1 - exp(-2h)) is DDPM's small variance."""
    process = gaussian(schedule)
    x, data = process.prior((4, 2), rows(4)).double(), eight(process)
    for z in (0.0, 1.0):
        own = build("sde_dpmpp", 9, "uniform", order=1)
        other = build("ancestral", 9, "uniform", eta=1.0)
        paths = (s.trajectory(data, x, Still(z)) for s in (own, other))
        for one, two in zip(*paths, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("schedule", ["vp", "karras", "straight"])
def test_sde_dpmpp_is_exact_for_a_point(schedule, order, eta):
    """A belief that does not move leaves the noise alone, and that is exact."""
    process, steps = gaussian(schedule), 6
    data = NormalData(process, 0.0)
    sampler = build("sde_dpmpp", steps, "uniform", order=order, eta=eta)
    found = variances(sampler, data, steps - 1)
    times = sampler.grid(process, steps)[1:-1]
    expected = data.variance(times).tolist()
    assert found == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(
    ("order", "eta", "claimed"), [(1, 1.0, 1), (2, 1.0, 1), (2, 0.5, 1), (2, 0.0, 2)]
)
def test_weak_order_of_sde_dpmpp(order, eta, claimed):
    process, errors = gaussian("vp"), []
    data = NormalData(process, 0.25)
    for steps in (200, 400):
        sampler = build("sde_dpmpp", steps, "log_sigma", order=order, eta=eta)
        assert sampler.order == claimed
        end = float(data.variance(sampler.grid(process, steps)[-2]))
        errors.append(abs(variances(sampler, data, steps - 1)[-1] - end))
    assert math.log2(errors[0] / errors[1]) > claimed - 0.2


STOCHASTIC = [
    {"name": "euler_maruyama"},
    {"name": "pc"},
    {"name": "pc", "predictor": "ancestral", "corrections": 2},
    {"name": "pc", "predictor": "euler_maruyama"},
    {"name": "pc", "predictor": "none", "corrections": 3},
    {"name": "annealed_langevin", "repeats": 3, "step": 1e-5},
    {"name": "sde_dpmpp"},
]


@pytest.mark.parametrize("variant", STOCHASTIC, ids=str)
@pytest.mark.parametrize("schedule", ["vp", "straight", "linear"])
def test_a_drawn_sample_does_not_depend_on_its_batch(variant, schedule):
    process, data = gaussian(schedule), eight(gaussian(schedule))
    sampler = build(steps=6, grid=LATE, **variant)
    prior, own = process.prior((5, 2), rows(5)), rows(5).of(torch.tensor([3]))
    *_, whole = sampler.trajectory(data, prior, rows(5))
    *_, alone = sampler.trajectory(data, prior[3:4], own)
    *_, other = sampler.trajectory(data, prior, rows(5, seed=1))
    assert whole.dtype == torch.float32 and whole.isfinite().all()
    torch.testing.assert_close(whole[3:4], alone, rtol=1e-5, atol=1e-6)
    assert not torch.equal(whole, other)


@pytest.mark.parametrize("variant", STOCHASTIC, ids=str)
def test_drawing_samplers_count_and_end_with_the_belief(variant):
    asked = []

    class Counted(NormalData):
        def forward(self, x, t):
            q = super().forward(x, t)
            asked.append((float(t), q.mean))
            return q

    sampler = build(steps=7, grid="log_sigma", **variant)
    data = Counted(gaussian("vp"))
    states = list(sampler.trajectory(data, rows(2).normal((2, 2)), rows(2)))
    assert len(asked) == sampler.calls(7) and len(states) == 7
    t, mean = asked[-1]
    assert torch.equal(states[-1], mean)
    assert t == float(sampler.grid(data.process, 7)[-2])


def test_every_draw_is_independent():
    """No two draws share a stream: each response has a row of its own."""
    data = NormalData(gaussian("vp"))
    x = torch.ones(100, 1, dtype=torch.float64)
    for variant, draws in (
        ({"name": "euler_maruyama"}, 4),
        ({"name": "pc", "corrections": 2}, 14),
        ({"name": "annealed_langevin", "repeats": 3}, 15),
        ({"name": "sde_dpmpp"}, 4),
    ):
        pulses = Pulses()
        list(build(steps=5, grid="log_sigma", **variant).trajectory(data, x, pulses))
        assert len(pulses.seen) == draws, variant
