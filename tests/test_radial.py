"""Any law of the noise, straight and bent rays, any prior (T9)."""

import math

import pytest
import torch
from charges import Charges, walk
from oracles import number, rows
from scipy import stats
from tiny import tiny

from diffusion_cli import assemble
from diffusion_cli.core import Spec
from diffusion_cli.errors import ConfigError
from diffusion_cli.processes import processes
from diffusion_cli.processes.rays import laws

KARRAS = {"name": "karras", "sigma_min": 0.002, "sigma_max": 80.0}
STRAIGHT = {"name": "straight", "floor": 1e-4}
ISOTROPIC = ["gaussian", "student", "ball", "tanh", "exponential", "steepening"]
DENSE = [*ISOTROPIC, "box"]


class Radii(Charges):
    """Charges of a law that may change with the level."""

    def share(self, x, t):
        k = self.process.schedule(t)
        gaps = [(x - k.alpha * y) / k.sigma for y in self.points]
        logs = torch.stack([self.process.log_density(gap, t) for gap in gaps], 1)
        away = torch.stack([gap.flatten(1).norm(dim=1) for gap in gaps], 1)
        outside = logs.isinf().all(1, keepdim=True)  # rounding: 0 / 0 without this
        return torch.where(outside, -1e9 * away, logs).softmax(1)


def radial(law, schedule=None, **own):
    node = {"name": "radial", "law": {"name": law, **own}}
    return processes.build({**node, "schedule": schedule or KARRAS})


def test_every_law_is_tested():
    assert {*DENSE, "data"} == set(laws.names())


@pytest.mark.parametrize("law", DENSE)
@pytest.mark.parametrize("d", [1, 3])
def test_draws_have_their_density(law, d):
    """By radii (or coordinates) against the integral of the density, and unit size."""
    process, n = radial(law), 20_000
    t = process.schedule.time(number(0.8))
    noise = process.law.noise((n, d), rows(n), torch.float64)
    if law not in ("student", "steepening"):
        square = noise.square()
        error = 5 * float(square.std()) / n**0.5
        assert float(square.mean()) == pytest.approx(1, abs=error)
    noise = process.law.at(noise, process.level(t, noise))
    r = torch.logspace(-9, 4, 40_001, dtype=torch.float64)
    if law == "box":
        probe, drawn = r[:, None] - 5, noise[:, :1]
        density = process.law.log_density(probe, number(0.5)).exp()
        at = probe[:, 0]
    else:
        probe, drawn = torch.zeros(len(r), d, dtype=torch.float64), noise
        probe[:, 0] = r
        sphere = 2 * math.pi ** (d / 2) / math.gamma(d / 2)
        density = process.log_density(probe, t).exp() * sphere * r ** (d - 1)
        at, drawn = r, noise.norm(dim=1, keepdim=True)
    cdf = torch.cumulative_trapezoid(density, at)
    assert float(cdf[-1]) == pytest.approx(1, abs=2e-3)
    at = at[1:]

    def below(values):
        place = torch.searchsorted(at, torch.as_tensor(values)).clamp(max=len(at) - 1)
        return cdf[place].numpy()

    assert stats.kstest(drawn[:, 0].numpy(), below).pvalue > 1e-3


def test_radii_keep_their_quantile_and_the_equation_of_continuity():
    """T9.1: psi_c(R) is constant on a ray, and d psi/dc + R' d psi/dR = 0."""
    law, d, h = laws.build({"name": "steepening"}), 3, 1e-6
    scale = math.sqrt(12 * d) / math.pi

    def psi(c, radius):
        return torch.tanh((radius / (scale * c)) ** (1 + c / (1 + c)))

    direction = torch.tensor([[0.6, 0.0, 0.8]], dtype=torch.float64)
    for u in (0.01, 0.4, 0.9, 0.999):
        n = law.radius(number(u), d) * direction
        for c in (0.003, 0.5, 3.0, 80.0):
            w = number(c / (1 + c))
            now = law.at(n, w)
            radius = c * now.norm()
            assert float(psi(c, radius)) == pytest.approx(u, rel=1e-9)
            growth = radius / c - law.bend(now, w).norm() / c * torch.sign(
                (law.bend(now, w) * now).sum()
            )  # dR/dc, from y' = (y - a) / c
            along = (psi(c + c * h, radius) - psi(c - c * h, radius)) / (2 * c * h)
            step = float(radius) * h
            across = (psi(c, radius + step) - psi(c, radius - step)) / (2 * step)
            assert abs(float(along + growth * across)) < 1e-6 * abs(float(along)) + 1e-9


@pytest.mark.parametrize("schedule", [KARRAS, STRAIGHT], ids=["karras", "straight"])
@pytest.mark.parametrize("law", DENSE)
def test_a_ray_of_one_datum_is_its_own_path(law, schedule):
    """corrupt(x_0, t, n) of one n solves the ODE that the aim defines."""
    process, h = radial(law, schedule), 1e-6
    x0, t = rows(4).normal((4, 3)).double(), torch.tensor([0.3, 0.5, 0.7, 0.9]).double()
    n = process.noise(x0, rows(4, 1))
    x = process.corrupt(x0, t, n)
    ahead, behind = (process.corrupt(x0, t + step, n) for step in (h, -h))
    from diffusion_cli.core import Point

    aim = process.aim(x0, x, t)
    torch.testing.assert_close(
        process.velocity(Point(aim), x, t),
        (ahead - behind) / (2 * h),
        rtol=1e-6,
        atol=1e-5,
    )
    if law != "steepening":
        assert torch.equal(aim, x0)


@pytest.mark.parametrize(
    "law", ["gaussian", "student", "tanh", "ball", "exponential", "steepening"]
)
def test_every_law_ends_on_the_data_in_their_frequencies(law):
    """T9.2: in one dimension the map keeps quantiles, so the count is exact."""
    process = radial(law)
    points = torch.tensor([-1.0, -0.2, -0.2, 1.1], dtype=torch.float64)[:, None]
    n = 400
    u = (torch.arange(n).double() + 0.5) / n
    start = process.prior((20_000, 1), rows(20_000)).double().flatten().sort().values
    start = start[(u * 20_000).long()][:, None]  # quantiles of the prior
    end = walk(Radii(process, points), start, 100, "heun", "rho")[-1]
    nearest = torch.cdist(end, points[[0, 1, 3]])
    inner = nearest.min(1).values < 0.02
    assert float(inner.double().mean()) > 0.98  # only next to an edge is it between
    counts = nearest.argmin(1).bincount(minlength=3) / n
    assert counts.tolist() == pytest.approx([0.25, 0.5, 0.25], abs=0.015)


def test_the_straight_path_from_a_box():
    """T9.3: data .5, .5, 1.2, 1.7, prior U[0, 2]; quantiles by characteristics."""
    process = radial("box", STRAIGHT, low=0.0, high=2.0)
    points = torch.tensor([0.5, 0.5, 1.2, 1.7], dtype=torch.float64)[:, None]
    start = torch.linspace(0.02, 1.98, 50, dtype=torch.float64)[:, None]
    end = walk(Radii(process, points), start, 400, "heun", "uniform")[-1]
    wanted = points[(start[:, 0] * 2).floor().long().clamp(max=3)]
    edges = torch.tensor([1.0, 1.5])
    far = (start - edges).abs().min(1).values > 0.021
    torch.testing.assert_close(end[far], wanted[far], rtol=0, atol=0.02)


@pytest.mark.parametrize("law", ["tanh", "student"])
def test_the_map_of_a_scale_family_does_not_know_its_schedule(law):
    """T9.4: the same prior, two schedules with the same end, many steps."""
    start, points = (
        rows(30).normal((30, 2)).double(),
        rows(4, 1).normal((4, 2)).double(),
    )
    ends = []
    for schedule, grid in ((KARRAS, "uniform"), ({**KARRAS, "rho": 3.0}, "uniform")):
        process = radial(law, schedule)
        ends.append(walk(Charges(process, points), 80 * start, 120, "heun", grid)[-1])
    gaps = (ends[0] - ends[1]).norm(dim=1)
    assert float(gaps.median()) < 5e-3 and float((gaps < 0.05).double().mean()) > 0.9


def test_the_minimiser_of_the_loss_is_the_mean_of_the_field():
    """T9.5: regressing the aim on a cell of states gives E[f | x] of FIX-E."""
    process, n = radial("steepening"), 200_000
    points = torch.tensor([[-1.0], [0.4]], dtype=torch.float64)
    which = rows(n).integers(2, (n,))
    x0, t = points[which], process.schedule.time(number(0.9))
    times = t.expand(n)
    x = process.corrupt(x0, times, process.noise(x0, rows(n, 1)))
    aim = process.aim(x0, x, times)
    oracle, away = Radii(process, points), []
    for centre in (-1.4, 0.05, 0.9):
        cell = (x[:, 0] - centre).abs() < 0.02
        found = aim[cell]
        exact = oracle(x[cell], t).mean
        error = 4 * float(found.std()) / int(cell.sum()) ** 0.5
        assert float(found.mean() - exact.mean()) == pytest.approx(0, abs=error)
        away.append(abs(float((x0[cell] - exact).mean())))
    assert max(away) > 0.05  # it is not the mean of x_0


def test_another_data_set_is_the_prior():
    own = {"dataset": {"name": "toy2d", "shape": "checkerboard", "size": 500}}
    process = radial("data", {"name": "straight"}, **own)
    x1 = process.prior((64, 2), rows(64))
    assert torch.equal(process.prior((64, 2), rows(64)), x1)
    cells = ((x1 / 0.75).floor() % 2).sum(1) % 2  # of one colour
    assert len(cells.unique()) == 1
    with pytest.raises(ConfigError, match="has no density"):
        process.log_prior(x1)


def test_another_data_set_has_to_fit():
    law = {"name": "data", "dataset": {"name": "digits"}}
    process = {"name": "radial", "law": law, "schedule": {"name": "straight"}}
    parts = {
        "parametrisation": {"name": "velocity"},
        "sampler": {"name": "euler", "grid": {"name": "uniform"}},
    }
    values = tiny(process=process, **parts)
    with pytest.raises(ConfigError, match="law: samples must have the shape"):
        assemble.parts(values, Spec((2,)))
