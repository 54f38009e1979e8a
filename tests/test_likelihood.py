"""Laws of the exact likelihood and of its bound (T4.1, T4.3, T4.6, T1.4)."""

import math
import re
from collections import Counter

import pytest
import torch
from measured import Stub
from oracles import SCHEDULES, Mixture, NormalData, gaussian, number, rows, scales

from diffusion_cli.core import Point, Spec
from diffusion_cli.denoiser import Denoiser
from diffusion_cli.errors import ConfigError
from diffusion_cli.metrics import metrics
from diffusion_cli.metrics.dequantising import start
from diffusion_cli.metrics.divergences import basis, divergences, draw
from diffusion_cli.processes import processes

TIGHT = {"rtol": 1e-7, "atol": 1e-7}
# schedules whose floor and prior change the density of N(0, 1/4) by less than 1e-5
DEEP = {
    "vp": {"floor": 1e-6, "beta_max": 30.0},
    "subvp": {"floor": 1e-5, "beta_max": 30.0},
    "ve": {"floor": 1e-5, "sigma_max": 500.0},
    "karras": {"sigma_min": 1e-3, "sigma_max": 500.0},
    "straight": {"floor": 1e-5},
    "trigonometric": {"floor": 1e-5},
}


class Uniform(Denoiser):
    """Independent coordinates, uniform in [-high, high]."""

    def __init__(self, process, high):
        super().__init__()
        self.process, self.high = process, high

    def forward(self, x, t, **cond):
        k = scales(self.process, t, x)
        noise, y = k.sigma / k.alpha, x / k.alpha
        low, high = (-self.high - y) / noise, (self.high - y) / noise
        phi = [torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi) for z in (low, high)]
        mass = torch.special.ndtr(high) - torch.special.ndtr(low)
        return Point(y + noise * (phi[0] - phi[1]) / mass)


def likelihood(**own):
    return metrics.build({"name": "likelihood", **own})


def normal_log_p(x, mean, variance):
    variance = torch.as_tensor(variance, dtype=torch.float64)
    terms = (x - mean).square() / variance + (2 * math.pi * variance).log()
    return -terms.expand_as(x).flatten(1).sum(1) / 2


def blurred(process, s2, m, x0, floor):
    """Exact log p of x_0 plus the floor's noise, if p_1 were the process's prior."""
    data = NormalData(process, s2, m)
    t, end = number(floor), number(process.span[1])
    k = process.schedule(t)
    x1 = data.exact(k.alpha * x0, t, end)
    true = normal_log_p(x1, process.schedule(end).alpha * m, data.variance(end))
    return (
        normal_log_p(x0, m, s2 + (k.sigma / k.alpha) ** 2)
        + process.log_prior(x1)
        - true
    )


@pytest.mark.parametrize("name", DEEP)
def test_the_log_density_of_a_normal(name):
    """T4.1: 50 points of FIX-G with the exact trace, against the closed form."""
    process = gaussian(name, **DEEP[name])
    data, x0 = NormalData(process, 0.25), 0.5 * rows(50).normal((50, 1)).double()
    metric = likelihood(trace="exact", rtol=1e-6, atol=1e-6)
    got = metric.solve(data, x0, number(process.span[0]), rows(50), Counter())
    assert got.shape == (50, 1)
    assert float((got[:, 0] - normal_log_p(x0, 0, 0.25)).abs().max()) < 1e-4


@pytest.mark.parametrize("name", ["vp", "karras", "straight"])
def test_the_log_density_of_a_mixture(name):
    """T4.1 on FIX-M, whose score is not linear: three normals in the plane."""
    process = gaussian(name, **DEEP[name])
    means = torch.tensor([[0.4, 0.0], [-0.4, 0.4], [-0.4, -0.6]])
    data = Mixture(process, torch.tensor([0.5, 0.3, 0.2]), means, 0.04)
    x0 = data.sample(50, rows(50))
    got = likelihood(rtol=1e-7, atol=1e-7).solve(
        data, x0, number(process.span[0]), rows(50), Counter()
    )
    exact = data.logp(x0, number(0.0))
    assert float((got[:, 0] - exact).abs().max()) < 1e-4


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_log_density_at_the_floor_of_any_path(name):
    """T4.1: what floor and prior do to it is known too; FIX-A in three dimensions."""
    process = gaussian(name)
    s2, m = torch.tensor([0.25, 2.0, 0.04]).double(), torch.tensor([0.7, 0, -1])
    x0 = m + s2.sqrt() * rows(20).normal((20, 3)).double()
    data = NormalData(process, s2, m)
    got = likelihood(**TIGHT).solve(
        data, x0, number(process.span[0]), rows(20), Counter()
    )[:, 0]
    exact = 0
    for i in range(3):
        column = x0[:, i : i + 1]
        exact = exact + blurred(
            process, float(s2[i]), float(m[i]), column, process.span[0]
        )
    torch.testing.assert_close(got, exact, rtol=0, atol=2e-5)


def test_hutchinson_is_unbiased():
    """T4.1: within four standard errors of the probes, with FIX-M in the plane."""
    process = gaussian("vp")
    means = torch.tensor([[0.4, 0.0], [-0.4, 0.4], [-0.4, -0.6]])
    data = Mixture(process, torch.tensor([0.5, 0.3, 0.2]), means, 0.04)
    x0 = data.sample(50, rows(50))
    exact = likelihood().solve(data, x0, number(process.span[0]), rows(50), Counter())
    for law in ("rademacher", "gaussian"):
        metric = likelihood(trace="hutchinson", probes=8, law=law, rtol=1e-4)
        found = metric.solve(data, x0, number(process.span[0]), rows(50), Counter())
        assert found.shape == (50, 8)
        error = (found - exact).mean()
        spread = (found.var(1).mean() / found.numel()).sqrt()
        assert spread > 1e-3 and abs(error) < 4 * spread


@pytest.mark.parametrize("law", ["rademacher", "gaussian"])
def test_the_variance_of_hutchinsons_estimate(law):
    """T4.3: 2 (|S|^2 - sum S_ii^2) and 2 |S|^2 with S = (A + A^T) / 2."""
    a = rows(5, 3).normal((5, 5)).double()
    s = (a + a.T) / 2
    x = torch.zeros(20_000, 5, dtype=torch.float64)
    probes = draw(4, law, x, rows(20_000))
    value, found = divergences(lambda x: x @ a.T + 1, x, probes)
    assert torch.equal(value, torch.ones_like(x))
    square = s.square().sum() - (law == "rademacher") * s.diagonal().square().sum()
    count = found.numel()
    exact = float(2 * square)
    assert float(found.mean()) == pytest.approx(
        float(a.trace()), abs=4 * math.sqrt(exact / count)
    )
    assert float(found.var()) == pytest.approx(exact, rel=0.03)


def test_probes_of_signs_are_exact_for_a_diagonal_field():
    """T4.3; and the exact trace is exact."""
    diagonal = torch.tensor([1.0, -3.0, 0.5]).double()
    x = torch.zeros(10, 3, dtype=torch.float64)
    probes = draw(2, "rademacher", x, rows(10))
    _, found = divergences(lambda x: x * diagonal, x, probes)
    torch.testing.assert_close(found, torch.full_like(found, -1.5))
    a = rows(3, 3).normal((3, 3)).double()
    _, parts = divergences(lambda x: x @ a.T, x, basis(x))
    torch.testing.assert_close(parts.sum(1), a.trace().expand(10))


class Flat(Denoiser):
    """A flow that leaves everything where it is, from a uniform prior."""

    def __init__(self, low, high):
        super().__init__()
        self.process = gaussian("karras")
        self.process.slope = lambda q, x, t: 0 * x
        size = math.log(high - low)

        def log_prior(x):
            inside = ((x > low) & (x < high)).flatten(1).all(1)
            return torch.where(inside, -x[0].numel() * size, -math.inf)

        self.process.log_prior = log_prior

    def forward(self, x, t, **cond):
        return Point(x)


@pytest.mark.parametrize("levels", [256, 17])
@pytest.mark.parametrize("filling", ["uniform", "truncated_normal"])
def test_bits_of_a_uniform_density(levels, filling):
    """T4.6: log2(levels) bits, whatever the data, for a density even over the cells."""
    half = 1 / (levels - 1)
    x0 = 2 * half * rows(8).integers(levels, (8, 3, 4)) - 1
    spec = Spec((3, 4), codec={"levels": levels})
    subject = Stub(Flat(-1 - half, 1 + half), x0, spec=spec)
    # noise that is wide against a cell fills it evenly, so any density is exact there
    metric = likelihood(
        filling=filling, trace="exact", floor=None if filling == "uniform" else 0.9
    )
    values = metric(subject).values
    assert values["bits_per_dim"] == pytest.approx(math.log2(levels), abs=1e-3)
    assert values["nll_nats"] == pytest.approx(12 * math.log(levels), rel=1e-3)
    if filling == "uniform":
        assert values["bits_per_dim"] == pytest.approx(math.log2(levels), abs=1e-7)


def test_bits_of_levels_by_the_exact_belief():
    """T4.6 without a shortcut: beliefs in uniform pixels, through the whole solver."""
    levels, process = 5, gaussian("karras", sigma_min=1e-3)
    high = 1 + 1 / (levels - 1)
    data = Uniform(process, high)
    x0 = (2 * rows(150).integers(levels, (150, 2)) / (levels - 1) - 1).double()
    subject = Stub(data, x0, spec=Spec((2,), codec={"levels": levels}), batch=150)
    values = likelihood(n=150, floor=process.span[0])(subject).values
    assert values["bits_per_dim"] == pytest.approx(math.log2(levels), abs=0.02)


def test_more_draws_bound_tighter():
    """Averaging inside of the logarithm, E_q[p / q], can only help on average."""
    process = gaussian("straight")
    data = NormalData(process, 0.02)
    x0 = torch.tensor([[-1.0], [0.0], [1.0]]).repeat(30, 1)
    subject = Stub(data, x0, spec=Spec((1,), codec={"levels": 3}), batch=200)
    first = process.span[0]
    found = {k: likelihood(dequantise=k, floor=first)(subject).values for k in (1, 8)}
    low, high = (found[k]["nll_nats"] for k in (8, 1))
    # P(level) is the mass of N(0, 0.02) within its cell: [-1/2, 1/2], [1/2, 3/2]
    deviation = math.sqrt(2 * 0.02)
    middle = math.erf(0.5 / deviation)
    side = (math.erf(1.5 / deviation) - math.erf(0.5 / deviation)) / 2
    exact = -(math.log(middle) + 2 * math.log(side)) / 3
    assert exact < low < high


def test_the_result_says_what_it_did():
    process = gaussian("vp")
    data, x0 = NormalData(process, 0.25), 0.5 * rows(20).normal((20, 3))
    metric = likelihood(n=16, trace="hutchinson", probes=4, law="gaussian")
    result = metric(Stub(data, x0, batch=8))
    values = result.values
    assert all(name.startswith(("nll_nats", "bits_per_dim")) for name in values)
    assert values["nll_nats_probe_error"] > 0 and values["nll_nats_se"] > 0
    assert values["bits_per_dim"] == pytest.approx(
        values["nll_nats"] / (3 * math.log(2))
    )
    notes = " ".join(result.notes)
    assert "differential" in notes and "t = 0.001" in notes and "gaussian, 4" in notes
    told = re.search(r"([\d.]+) calls, ([\d.]+) steps and ([\d.]+) rejected", notes)
    assert told is not None, notes
    calls, accepted, rejected = map(float, told.groups())
    assert calls == 2 + 6 * (accepted + rejected) and accepted > 3


def test_a_bad_protocol_is_refused():
    for wrong in ({"n": 0}, {"floor": 1.0}, {"probes": 0}, {"rtol": 0.0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            likelihood(**wrong)
    tokens = Spec((4,), kind="tokens", vocab=5)
    subject = Stub(NormalData(gaussian("vp")), torch.zeros(1, 4), spec=tokens)
    with pytest.raises(ConfigError, match="real numbers"):
        likelihood()(subject)


def test_where_a_likelihood_starts():
    """The smallest trained time; a third of the spacing of levels, if that is later."""
    process = gaussian("karras")
    first = number(process.span[0])
    assert start(process, None, None) == first and start(process, 0.1, 0.7) == 0.7
    assert start(process, 1e-3, None) == first
    t = start(process, 0.125, None)
    assert float(process.schedule(t).sigma) == pytest.approx(0.125 / 3)


@pytest.mark.parametrize("degrees", [1.0, 5.0])
def test_a_flow_without_a_score(degrees):
    """PFGM++ of one datum at 0: its own Student-t law, at the floor's scale."""
    node = {
        "name": "electrostatic",
        "D": degrees,
        "schedule": {"name": "karras", "sigma_min": 0.1},
    }
    process = processes.build(node)
    data = Mixture(process, torch.ones(1), torch.zeros(1, 3), 0.0)
    x0 = 0.1 * process.noise(torch.zeros(20, 3), rows(20)).double()
    floor = number(process.span[0])
    got = likelihood(**TIGHT).solve(data, x0, floor, rows(20), Counter())[:, 0]
    exact = process.log_noise(x0 / 0.1) - 3 * math.log(0.1)
    torch.testing.assert_close(got, exact, rtol=0, atol=1e-5)
