"""Wasserstein gradient flows under a given energy: T15, G14."""

import math

import pytest
import torch
from oracles import Still, number, rows

from diffusion_cli.guidance import energies
from diffusion_cli.guidance.gradients import slope

TARGET = energies.build({"name": "quadratic"}, context=None)  # E of N(0, 1)


def langevin(x, h, noise, energy=TARGET):
    """One unadjusted Langevin step: x - h grad E + sqrt(2 h) z."""
    return x - h * slope(energy, x) + (2 * h) ** 0.5 * noise.normal(x.shape, x.dtype)


def moments(m, v, h, steps):
    """Mean and variance of normal particles, from the steps' response alone."""
    zero, one = torch.zeros(1, 1).double(), torch.ones(1, 1).double()
    shift = float(langevin(zero, h, Still(0.0)))
    gain = float(langevin(one, h, Still(0.0))) - shift
    spread = float(langevin(zero, h, Still(1.0))) - shift
    for _ in range(steps):
        m, v = gain * m + shift, gain**2 * v + spread**2
    return m, v


def divergence(m, v):
    """KL(N(m, v) | N(0, 1)) in nats."""
    return (m**2 + v - 1 - math.log(v)) / 2


def test_langevin_follows_the_flow_to_the_energys_normal():
    """T15.1: mean m e^-t, variance 1 + (v0 - 1) e^-2t; KL falls at least as e^-2t."""
    errors = []
    for h in (1e-2, 5e-3, 2.5e-3):
        m, v = moments(3.0, 4.0, h, round(1 / h))
        errors.append(abs(m - 3 * math.exp(-1)) + abs(v - 1 - 3 * math.exp(-2)))
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.1)
    assert errors[1] / errors[2] == pytest.approx(2, abs=0.1)
    start, h = divergence(3.0, 4.0), 1e-3
    for t in (0.25, 0.5, 1.0, 2.0):
        assert divergence(*moments(3.0, 4.0, h, round(t / h))) <= start * math.exp(
            -2 * t
        ) * (1 + 2 * h)


def test_langevin_particles_end_as_the_energy_says():
    """Real noise: the stationary variance of the chain is 1 / (1 - h / 2)."""
    n, h, x = 20_000, 0.1, torch.full((20_000, 1), 2.0, dtype=torch.float64)
    for i in range(80):
        x = langevin(x, h, rows(n).at(i))
    v = 1 / (1 - h / 2)
    assert abs(float(x.mean())) < 4 * (v / n) ** 0.5
    assert abs(float(x.var()) - v) < 4 * v * (2 / n) ** 0.5


def jko(s, h):
    """The standard deviation after one JKO step to N(0, 1), in closed form."""
    return (s / h + math.sqrt((s / h) ** 2 + 4 * (1 / h + 1))) / (2 * (1 / h + 1))


def test_golden_jko_step():
    """G14, T15.2: one step of h = .1 from 2, closed and minimised; the exact flow."""
    s0, h = 2.0, 0.1
    s = torch.linspace(1.5, 2.2, 700_001, dtype=torch.float64)
    functional = (s - s0) ** 2 / (2 * h) + TARGET(s[:, None]) - s.log()
    found = float(s[functional.argmin()])
    assert found == pytest.approx(1.866878, abs=2e-6)
    assert jko(s0, h) == pytest.approx(1.866878, abs=1e-6)
    exact = math.sqrt(1 + (s0**2 - 1) * math.exp(-2 * h))
    assert exact == pytest.approx(1.859084, abs=1e-6)
    _, v = moments(0.0, s0**2, 1e-5, 10_000)  # Langevin is the limit of small steps
    assert math.sqrt(v) == pytest.approx(exact, abs=1e-4)


def test_jko_steps_follow_the_flow_at_first_order():
    """T15.2: the global error at t = 1 from 2."""
    exact = math.sqrt(1 + 3 * math.exp(-2))
    for h, golden in ((0.1, 0.0243), (0.05, 0.0124), (0.025, 0.0063)):
        s = 2.0
        for _ in range(round(1 / h)):
            s = jko(s, h)
        assert s - exact == pytest.approx(golden, abs=6e-5)


def test_two_scores_carry_particles_as_langevin_does():
    """T15.3: dx/dt = grad log p - grad log q, q exact, has Langevin's variance."""
    h, v, x = 1e-3, 4.0, torch.tensor([[1.0]], dtype=torch.float64)
    for _ in range(500):
        own = energies.build({"name": "quadratic", "std": v**0.5}, context=None)
        drift = slope(own, x) - slope(TARGET, x)
        x = x + h * drift
        v = 4.0 * float(x) ** 2  # a linear map of N(0, 4)
    assert v == pytest.approx(1 + 3 * math.exp(-1), rel=2e-3)
    assert v == pytest.approx(moments(0.0, 4.0, h, 500)[1], rel=2e-3)


FAMILIES = {
    "reverse KL": lambda r: -r.log(),  # KL(q | p)
    "KL": lambda r: r * r.log(),  # KL(p | q)
    "chi2": lambda r: (r - 1) ** 2,
}


def first_variation(f, r):
    """dF/dq = f(r) - r f'(r) of F = int q f(p / q)."""
    r = r.detach().requires_grad_()
    value = f(r)
    (slope_of_f,) = torch.autograd.grad(value.sum(), r)
    return (value - r * slope_of_f).detach()


def test_the_drift_of_minus_log_is_the_difference_of_two_scores():
    """T15.3: -d/dx (f(r) - r f'(r)) at f = -log is grad log p - grad log q."""
    x = torch.linspace(-2, 2, 4001, dtype=torch.float64)[:, None]
    own = energies.build({"name": "quadratic", "std": 2.0}, context=None)
    r = 2 * (own(x) - TARGET(x)).exp()
    (drift,) = torch.gradient(
        -first_variation(FAMILIES["reverse KL"], r), spacing=(x[:, 0],)
    )
    expected = (slope(own, x) - slope(TARGET, x))[:, 0]
    torch.testing.assert_close(drift[1:-1], expected[1:-1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_divergence_falls_along_its_flow(name):
    """T15.4: dq/dt = d/dx (q d/dx dF/dq) on a grid, upwind, from N(0.5, 1.3^2)."""
    f, dx, dt = FAMILIES[name], 0.1, 1e-4
    x = torch.arange(-3, 3, dx, dtype=torch.float64)[:, None]
    own = energies.build({"name": "quadratic", "mean": 0.5, "std": 1.3}, context=None)
    p, q = ((-energy(x)).exp() for energy in (TARGET, own))
    p, q = p / p.sum(), q / q.sum()
    values = []
    for _ in range(400):
        values.append(float((q * f(p / q)).sum()))
        drift = -first_variation(f, p / q).diff() / dx
        flow = drift.clamp(min=0) * q[:-1] + drift.clamp(max=0) * q[1:]
        q = q - dt / dx * torch.nn.functional.pad(flow, (1, 1)).diff()
        assert (q > 0).all()
    falls = torch.tensor(values).diff()
    assert (falls <= 0).all() and values[-1] < 0.99 * values[0]


def test_the_entropy_alone_is_heat():
    """No energy: Langevin is diffusion, variance + 2 t."""
    nothing = energies.build({"name": "linear", "slope": 0.0}, context=None)
    x = langevin(number(0.0).reshape(1, 1), 0.3, Still(1.0), nothing)
    assert float(x) ** 2 == pytest.approx(0.6)
