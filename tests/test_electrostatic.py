"""PFGM and PFGM++ against closed forms (T8)."""

import math

import pytest
import torch
from charges import KARRAS, STRAIGHT, Charges, electrostatic, walk
from oracles import Finite, gaussian, number, rows
from scipy import stats

from diffusion_cli.processes import processes, student
from diffusion_cli.samplers import grids

DEGREES = [1.0, 2.5, 8.0, 128.0]


@pytest.mark.parametrize("D", [0.5, 1, 2, 3, 64, 2048])
def test_chi_square_is_drawn_by_its_exact_quantile(D):
    words = [0.5, 1e3, 2**31, 2**32 - 1e3, 2**32 - 0.5]
    tails = torch.tensor(words, dtype=torch.float64) / 2**32
    u = torch.cat((tails, torch.linspace(0.01, 0.99, 99, dtype=torch.float64)))
    found = 2 * student.gamma(u, D / 2)
    expected = torch.from_numpy(stats.chi2(D).ppf(u.numpy()))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("D", DEGREES)
@pytest.mark.parametrize("d", [1, 3])
def test_the_prior_has_its_own_density(D, d):
    process = electrostatic(D)
    x = process.prior((9, d), rows(9))
    law = stats.multivariate_t(shape=80.0**2 * torch.eye(d).numpy(), df=D)
    expected = torch.as_tensor(law.logpdf(x.double().numpy()))
    torch.testing.assert_close(process.log_prior(x), expected)


def test_far_states_of_the_prior_are_drawn_in():
    """The paper's 3,000 is sqrt(pi d / 2) z_max for CIFAR-10: d = 3072, z_max = 43."""
    node = {"name": "electrostatic", "D": 1.0, "schedule": KARRAS}
    near, far = (
        processes.build({**node, "reach": reach}).prior((500, 3), rows(500))
        for reach in (1.0, None)
    )
    norms, limit = (x.norm(dim=1) for x in (near, far)), 80 * (1.5 * math.pi) ** 0.5
    clipped, free = norms
    inside = free < limit
    assert torch.equal(near[inside], far[inside]) and 0.2 < inside.float().mean() < 0.9
    assert float(clipped.max()) == pytest.approx(limit, rel=1e-6)
    assert math.sqrt(math.pi * 3072 / 2) * 43.408 == pytest.approx(3015.39, rel=1e-4)


def test_noise_is_a_function_of_the_row_alone():
    process, x0 = electrostatic(3.0), torch.zeros(6, 4)
    whole = process.noise(x0, rows(6))
    part = process.noise(x0[2:5], rows(6).of(torch.arange(2, 5)))
    assert torch.equal(whole[2:5], part)


@pytest.mark.parametrize("schedule", [KARRAS, STRAIGHT], ids=["karras", "straight"])
@pytest.mark.parametrize("D", DEGREES)
@pytest.mark.parametrize("sampler", ["euler", "heun", "ancestral"])
def test_rays_of_one_charge_are_straight(D, sampler, schedule):
    """T8.1: x(z) = y + (z / z_max) (x_max - y), for any D and any step."""
    process = electrostatic(D, schedule)
    y = torch.tensor([[0.3, -1.2, 0.7]], dtype=torch.float64)
    start = process.prior((5, 3), rows(5)).double()
    times = grids.build({"name": "uniform"})(process, 7)
    states, end = walk(Charges(process, y), start, 7, sampler, "uniform"), process.end
    for t, x in zip(times[1:], states, strict=True):
        k = process.schedule(t)
        ray = k.alpha * y + k.sigma / end.sigma * (start - end.alpha * y)
        torch.testing.assert_close(x, ray, rtol=1e-6, atol=1e-9)


def test_the_stream_function_is_conserved():
    """T8.2: field lines in the plane carry psi = mean atan2(x - y, z) / pi + 1/2."""
    process = electrostatic(1.0)
    points = torch.tensor([[-1.0], [0.2], [0.9]], dtype=torch.float64)

    def psi(x, z):
        angle = torch.atan2(x - points.T, torch.full_like(x, z))
        return angle.mean(1) / math.pi + 0.5

    start = (
        80 * torch.tensor([-3.0, -0.4, 0.01, 0.3, 2.0], dtype=torch.float64)[:, None]
    )
    steps = 300
    states = walk(Charges(process, points), start, steps)
    logs = torch.linspace(math.log(80), math.log(0.002), steps, dtype=torch.float64)
    for i in (50, 150, 225, 298):
        drift = psi(states[i], float(logs[i + 1].exp())) - psi(start, 80.0)
        assert float(drift.abs().max()) < 1e-4
    quantile = (psi(start, 80.0) * 3).floor().long()
    torch.testing.assert_close(states[-1], points[quantile], rtol=0, atol=2e-3)


def plain_field(x, r, points, power):
    """E_x and E_r of equal charges, summed as it stands in the paper."""
    gaps = x[:, None] - points[None]
    distance = (gaps.square().sum(-1) + r**2).sqrt()[..., None]
    across = (gaps / distance**power).mean(1)
    return across, (r / distance**power).mean(1)


@pytest.mark.parametrize("D", [1.0, 4.0])
def test_field_lines_are_the_ode_of_the_posterior_mean(D):
    """T8.3: dx/dr = E_x / E_r = (x - E[x_0 | x]) / r, on a finite set of charges."""
    process, d = electrostatic(D), 2
    points = rows(6).normal((6, d)).double()
    x, t = 3 * rows(7, 1).normal((7, d)).double(), process.schedule.time(number(0.8))
    across, along = plain_field(x, 0.8 * D**0.5, points, d + D)
    slope = process.slope(Charges(process, points)(x, t), x, t)  # dx / d sigma
    torch.testing.assert_close(slope, across / along * D**0.5)
    velocity = process.velocity(Charges(process, points)(x, t), x, t)
    torch.testing.assert_close(velocity, slope * process.schedule(t).dsigma)


def test_moments_of_the_noise():
    """T8.4: E|n|^2 = D d / (D - 2); the beta form of the papers has the same law."""
    D, d, n = 9.0, 4, 100_000
    process = electrostatic(D)
    noise = process.noise(torch.zeros(n, d).double(), rows(n))
    square = noise.square().sum(1)
    error = 4 * float(square.std()) / n**0.5
    assert float(square.mean()) == pytest.approx(D * d / (D - 2), abs=error)
    radius = stats.betaprime(d / 2, D / 2)  # R^2 = D B / (1 - B)
    assert stats.kstest((square / D).numpy(), radius.cdf).pvalue > 1e-3
    cosine = (noise[:, 0] / square.sqrt()).numpy()
    assert abs(cosine.mean()) < 4 / n**0.5


def test_many_dimensions_make_a_gaussian():
    """T8.5: radii, the belief at the rate 1 / D, and the end of the sampler."""
    d, n = 50, 4000
    for D, golden in ((8, 0.295), (64, 0.087), (512, 0.0146), (4096, 0.0019)):
        noise = electrostatic(D).noise(torch.zeros(n, d).double(), rows(n))
        gap = stats.kstest(noise.norm(dim=1).numpy(), stats.chi(d).cdf).statistic
        assert gap == pytest.approx(golden, abs=1.63 / n**0.5)
    points = rows(5).normal((5, 3)).double()
    x, t = (
        rows(8, 1).normal((8, 3)).double(),
        gaussian("karras").schedule.time(number(0.7)),
    )
    ideal = Finite(gaussian("karras"), points)
    gaps = [
        float(
            (Charges(electrostatic(D), points)(x, t).mean - ideal(x, t).mean)
            .abs()
            .max()
        )
        for D in (1e2, 1e3, 1e4)
    ]
    rates = [math.log10(gaps[0] / gaps[1]), math.log10(gaps[1] / gaps[2])]
    assert rates == pytest.approx([1, 1], abs=0.1)
    start = 80 * rows(8, 2).normal((8, 3)).double()
    far = walk(Charges(electrostatic(1e7), points), start, 18)[-1]
    assert float((far - walk(ideal, start, 18)[-1]).abs().max()) < 1e-3


def test_the_field_has_no_divergence_and_a_constant_flux():
    """T8.6, with the field that the process's own belief gives back."""
    points = torch.tensor([[-0.5, 0.0], [0.6, 0.3]], dtype=torch.float64)
    process, denoiser = electrostatic(1.0), Charges(electrostatic(1.0), points)

    def field(x, z):  # direction from the belief, strength from E_z alone
        t = process.schedule.time(number(z))
        _, along = plain_field(x, z, points, 3)
        slope = process.slope(denoiser(x, t), x, t)
        return torch.cat((slope * along, along), 1)

    x, z, h = torch.tensor([[0.3, -0.8]], dtype=torch.float64), 0.7, 1e-5
    parts = (field(x, z + h) - field(x, z - h))[:, 2]
    for axis in range(2):
        step = torch.zeros_like(x)
        step[:, axis] = h
        parts = parts + (field(x + step, z) - field(x - step, z))[:, axis]
    assert abs(float(parts) / (2 * h)) < 1e-6
    side = torch.sinh(torch.linspace(-9, 9, 401, dtype=torch.float64))  # to 4,000
    grid = torch.cartesian_prod(side, side)
    for z in (0.5, 2.0):
        along = field(grid, z)[:, 2].reshape(401, 401)
        flux = torch.trapezoid(torch.trapezoid(along, side), side)
        assert float(flux) == pytest.approx(2 * math.pi, rel=2e-3)


def test_only_steps_that_do_not_draw():
    process = electrostatic(4.0)
    process.check(eta=0.0)
    with pytest.raises(ValueError, match="eta: must be 0: only Gaussian noise"):
        process.check(eta=1.0)
    with pytest.raises(ValueError, match="final: must be mean"):
        process.check(final="draw")


@pytest.mark.parametrize("D", [3e6, 1e8, 1e13, 1e17, 1e30])
@pytest.mark.parametrize("d", [2, 3072])
def test_very_many_degrees_of_freedom_are_the_normal_law(D, d):
    """T8: D -> infinity is EDM; lgamma((D + d) / 2) - lgamma(D / 2) would cancel."""
    square = torch.tensor([0.5 * d, float(d)], dtype=torch.float64)
    found = student.log_kernel(square, d, D)
    normal = -square / 2 - d / 2 * math.log(2 * math.pi)
    torch.testing.assert_close(found, normal, rtol=0, atol=d**2 / D + 1e-9)
    n = student.noise((20_000, 1), D, rows(20_000), torch.float64)
    assert float(n.square().mean()) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("D", [1e5, 1.9e6, 2.1e6, 1e9])
def test_large_quantiles_are_those_of_cornish_and_fisher(D):
    u = torch.tensor([1e-6, 1e-3, 0.2, 0.5, 0.9, 1 - 1e-6], dtype=torch.float64)
    z = torch.special.ndtri(u)
    series = 1 + z * math.sqrt(2 / D) + 2 / 3 * (z**2 - 1) / D
    series += (z**3 - 7 * z) / (9 * math.sqrt(2)) / D**1.5
    error = 500 / D**2 + 2e-9  # the next term; 1e-9 either side of LARGE
    found = 2 * student.gamma(u, D / 2) / D
    torch.testing.assert_close(found, series, rtol=error, atol=0)
