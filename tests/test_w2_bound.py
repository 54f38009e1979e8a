"""The bound of W2 by score matching: equality, order, linearity (T10, G12, G13)."""

import math

import pytest
import torch
from measured import Stub
from oracles import NormalData, eight, gaussian, number, rows

from diffusion_cli.core import Point
from diffusion_cli.denoiser import Denoiser
from diffusion_cli.errors import ConfigError
from diffusion_cli.metrics import Batch, metrics
from diffusion_cli.metrics.transport import Empirical, bound, steepest, sweep
from diffusion_cli.rng import Rng

# variance of the data and of the model's belief: W2, and the bound for the SDE
GOLDEN = {
    (0.25, 0.30): (0.04772, 0.06421),
    (1.0, 1.1): (0.04881, 0.06539),
    (4.0, 3.0): (0.26791, 0.35208),
    (0.05, 0.06): (0.02134, 0.02871),
}


class Signs(Rng):
    """Noise of +1 and -1 in turn: exact moments from four points."""

    def __init__(self):
        super().__init__(0, torch.arange(4))

    def child(self, name):
        return self

    def at(self, step):
        return self

    def normal(self, shape, dtype=torch.float32):
        return torch.tensor([[1.0], [-1.0], [1.0], [-1.0]], dtype=dtype)


def batch(s2):
    """Data and noise with exactly the moments of N(0, s2) and N(0, 1)."""
    signs = torch.tensor([[1.0], [1.0], [-1.0], [-1.0]]).double()
    return [Batch(math.sqrt(s2) * signs, {}, Signs())]


def found(process, s2, believed, count=201):
    truth, model = NormalData(process, s2), NormalData(process, believed)
    low, high = process.span
    grid = torch.linspace(0, 1, count, dtype=torch.float64)
    times = low + (high - low) * grid**1.5  # closer where variances are small
    return sweep(model, truth, batch(s2), times, iterations=0)


@pytest.mark.parametrize(("s2", "believed"), GOLDEN)
def test_the_bound_of_a_wrong_variance(s2, believed):
    """T10.1, T10.2, G12, G13: the ODE's bound is W2 itself; the SDE's is larger."""
    process = gaussian("vp", floor=1e-6)
    swept = found(process, s2, believed)
    ode, sde = (bound(process, swept, form) for form in ("ode", "sde"))
    distance, golden = GOLDEN[s2, believed]
    assert ode.transport == pytest.approx(distance, abs=2e-5)
    assert sde.transport == pytest.approx(golden, abs=2e-5)

    # W2 of the ODE in closed form: the variance v_1 is carried to data by s2~ / v~_1
    wrong, end = NormalData(process, believed), number(1.0)
    first = NormalData(process, s2).variance(end)
    carried = float((believed * first / wrong.variance(end)).sqrt())
    assert ode.transport == pytest.approx(abs(carried - math.sqrt(s2)), abs=2e-5)

    # W2 of the SDE: its variance backwards in time, by Heun's rule
    times = swept.times.flip(0)
    k, g2 = process.schedule(times), process.diffusion(times)
    pull = 2 * (-k.dalpha / k.alpha - g2 / wrong.variance(times))
    variance = float(first)
    for i in range(len(times) - 1):
        h = float(times[i] - times[i + 1])
        a = float(pull[i]) * variance + float(g2[i])
        b = float(pull[i + 1]) * (variance + h * a) + float(g2[i + 1])
        variance += h * (a + b) / 2
    assert abs(math.sqrt(variance) - math.sqrt(s2)) == pytest.approx(distance, abs=1e-4)
    assert abs(math.sqrt(variance) - math.sqrt(s2)) < sde.transport


@pytest.mark.parametrize("name", ["subvp", "ve", "karras", "straight", "exponential"])
def test_equality_on_every_path(name):
    """T10.1 has nothing to do with VP: the sign of the drift, and alpha = 0 at 1."""
    process = gaussian(name)
    swept = found(process, 0.25, 0.30)
    low, high = (number(t) for t in process.span)
    true, wrong = NormalData(process, 0.25), NormalData(process, 0.30)
    ratio = wrong.variance(low) / wrong.variance(high)
    carried = (true.variance(high) * ratio).sqrt() - true.variance(low).sqrt()
    got = bound(process, swept, "ode").transport
    assert got == pytest.approx(abs(float(carried)), rel=2e-4)


class Off(Denoiser):
    """The exact belief plus a constant, which leaves its slope as it is."""

    def __init__(self, process, by):
        super().__init__()
        self.process, self.by, self.inner = process, by, NormalData(process, 0.25)

    def forward(self, x, t, **cond):
        return Point(self.inner(x, t).mean + self.by)


def test_the_bound_is_linear_in_the_error():
    """T10.3: 0 for the exact score and equal priors; twice the error, twice the sum."""
    process = gaussian("vp")
    times = torch.linspace(*process.span, 51, dtype=torch.float64)
    truth, transports = NormalData(process, 0.25), []
    for by in (0.0, 0.1, 0.2):
        swept = sweep(Off(process, by), truth, batch(0.25), times, iterations=1)
        transports.append([bound(process, swept, f).transport for f in ("ode", "sde")])
    assert transports[0] == [0.0, 0.0]
    assert min(transports[1]) > 0.01
    assert transports[2] == pytest.approx([2 * value for value in transports[1]])


def test_prior_and_floor_are_bounded_by_their_couplings():
    process = gaussian("vp")
    got = bound(process, found(process, 0.25, 0.25, 101), "ode")
    v = NormalData(process, 0.25).variance(number(1.0))
    exact = abs(float(v.sqrt() - process.end.sigma))  # W2(p_T, q_T)
    growth = float(got.columns["I"][-1])
    assert (
        growth * exact
        < got.offset
        == pytest.approx(growth * float(process.end.alpha) / 2)
    )
    k = process.schedule(number(process.span[0]))
    smeared = math.sqrt(float(NormalData(process, 0.25).variance(number(1e-3))))
    assert abs(smeared - 0.5) < got.floor < 1.1 * float(k.sigma)
    assert got.total == got.transport + got.offset + got.floor


class Linear(Denoiser):
    """E[x_0 | x] = A x."""

    def __init__(self, a):
        super().__init__()
        self.process, self.a = gaussian("vp"), a

    def forward(self, x, t, **cond):
        return Point(x @ self.a.T.to(x.dtype))


@pytest.mark.parametrize("shift", [0.0, -9.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_power_iteration_finds_the_steepest_direction(shift, dtype):
    """From below, also where J is not symmetric or all of it is negative."""
    a = rows(6, 2).normal((6, 6)).double() + shift * torch.eye(6)
    x = torch.zeros(4, 6, dtype=dtype)
    u, t = rows(4).normal((4, 6), dtype), number(0.5)
    exact = float(torch.linalg.eigvalsh((a + a.T) / 2)[-1])
    few, many = (float(steepest(Linear(a), x, t, u, n)) for n in (1, 200))
    assert few < many == pytest.approx(exact, abs=1e-3)
    assert few <= exact + 1e-5 and many <= exact + 1e-5


def test_the_score_of_a_finite_set_is_exact():
    process = gaussian("straight")
    points = rows(5).normal((5, 2)).double()
    x, t = rows(3, 1).normal((3, 2)).double(), number(0.4)
    density = -((x[:, None] - 0.6 * points).square().sum(2)) / (2 * 0.4**2)
    expected = density.softmax(1) @ points
    got = Empirical(process, points)(x, t).mean
    torch.testing.assert_close(got, expected)


def build(**own):
    return metrics.build({"name": "w2_bound", **own})


def subject(process, n=256):
    data = eight(process)
    x0, drawn = data.sample(n, rows(n)), data.sample(n, rows(n, 1))
    return Stub(data, x0, drawn, batch=n)


@pytest.mark.parametrize("form", ["ode", "sde"])
def test_the_table_and_what_it_says_of_itself(form):
    process = gaussian("vp")
    result = build(n=64, form=form, times=20, iterations=2)(subject(process))
    columns = ["t", "g2", "e2_dsm", "e2", "L_s", "I", "cumulative"]
    assert [list(row) for row in result.table] == [columns] * 20
    values, last = result.values, result.table[-1]
    assert last["cumulative"] == values["transport"]
    parts = values["transport"] + values["offset"] + values["floor"]
    assert values["w2_bound"] == parts
    assert values["ratio"] == parts / values["w2"] > 1
    assert values["w2_floor"] > 0
    notes = " ".join(result.notes)
    assert "heuristic" in notes and "upper bound" in notes and form.upper() in notes


def test_a_reference_takes_away_what_no_score_could_know():
    process = gaussian("karras")
    own = {"n": 64, "times": 20, "iterations": 1}
    by_loss = build(**own)(subject(process)).table
    by_truth = build(**own, reference=256)(subject(process)).table
    for loss, truth in zip(by_loss, by_truth, strict=True):
        assert loss["e2_dsm"] == truth["e2_dsm"] == loss["e2"]
        assert truth["e2"] < loss["e2"]
    # at large noise the belief in 256 points is that in their law
    assert by_truth[-1]["e2"] < 0.02 * by_loss[-1]["e2"]


def test_what_it_refuses():
    with pytest.raises(ConfigError, match="reference: must be 0, or >= n = 64"):
        build(n=64, reference=32)
    labelled = subject(gaussian("vp"))
    plain = labelled.data
    labelled.data = lambda n, first=0: (
        one._replace(cond={"label": torch.zeros(len(one.x0))}) for one in plain(n)
    )
    with pytest.raises(ConfigError, match="without conditions"):
        build(n=16, reference=64)(labelled)
