"""Laws of Langevin dynamics: T3.4 with G10, T13.4, and the corrector's step."""

import pytest
import torch
from chains import build, variances
from oracles import Mixture, NormalData, Still, gaussian, number, rows

from diffusion_cli.samplers import samplers


def one_level(process, data, moves, step):
    """The variance after Langevin moves at sigma = 1, from before the last belief."""
    sampler = build("annealed_langevin", 1, "uniform", repeats=moves, step=step)
    (found,) = variances(sampler, data, moves)
    k = process.schedule(number(1.0))
    gain = k.alpha * data.s2 / data.variance(number(1.0))  # of the belief
    return float(found / gain**2)


def test_golden_variance_of_langevin_dynamics():
    """G10, T3.4: V = 2, e = 0.3 ends at V / (1 - e / 2V) = 2.162162."""
    process = gaussian("karras", sigma_max=1.0)
    data = NormalData(process, 1.0)
    found = one_level(process, data, 150, 0.3)
    assert found == pytest.approx(2.162162, rel=1e-6)
    assert found == pytest.approx(2 / (1 - 0.3 / 4), rel=1e-12)


@pytest.mark.parametrize("step", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("moves", [1, 3, 40])
def test_the_variance_follows_its_recursion(step, moves):
    """T3.4: V' = (1 - e / V)^2 V' + 2 e, and every path is NCSN's in x / alpha."""
    for schedule in ("karras", "vp"):
        process = gaussian(schedule)
        data = NormalData(process, 0.5)
        k = process.schedule(number(1.0))
        target = data.variance(number(1.0)) / k.alpha**2
        e = step * float(target)
        variance = float(target)
        for _ in range(moves):
            variance = (1 - e / float(target)) ** 2 * variance + 2 * e
        found = one_level(process, data, moves, e)
        assert found / float(k.alpha**2) == pytest.approx(variance, rel=1e-9)


@pytest.mark.parametrize("schedule", ["vp", "ve", "straight"])
def test_paths_with_the_same_noise_levels_anneal_alike(schedule):
    """T11.5."""
    grid = {"name": "log_sigma", "sigma_min": 0.02, "sigma_max": 40.0}
    u, found = rows(4).normal((4, 2)).double() * 40, []
    for name in ("karras", schedule):
        process = gaussian(name)
        sampler = build("annealed_langevin", 7, grid, step=4e-5)
        alphas = process.schedule(sampler.grid(process, 7)).alpha
        data = Mixture(process, torch.ones(2), torch.eye(2), 0.1)
        *_, x = sampler.trajectory(data, alphas[0] * u, rows(4))
        found.append(x)
    torch.testing.assert_close(found[1], found[0], rtol=1e-8, atol=1e-8)


def test_annealing_finds_the_weights_of_the_modes():
    """T13.4: shares within 4 s.e.; moves at the last level alone keep their start."""
    n, weights = 2000, torch.tensor([0.1, 0.6, 0.3], dtype=torch.float64)
    process = gaussian("karras", sigma_min=0.1, sigma_max=20.0)
    means = torch.tensor([[-4.0, 0.0], [4.0, 0.0], [0.0, 5.0]])
    data, noise = Mixture(process, weights, means, 0.05), rows(n).normal((n, 2))

    def shares(levels, repeats, grid, start):
        own = {"repeats": repeats, "step": 0.1 * 0.1**2}
        sampler = build("annealed_langevin", levels, grid, **own)
        *_, x = sampler.trajectory(data, start, rows(n))
        assert float(torch.cdist(x, means).min(1).values.max()) < 1.5
        return torch.cdist(x, means).argmin(1).bincount(minlength=3) / n

    error = 4 * (weights * (1 - weights) / n).sqrt()
    annealed = shares(24, 20, "log_sigma", 20 * noise)
    assert bool(((annealed - weights).abs() < error).all()), annealed
    single = {"name": "log_sigma", "sigma_max": 0.1001, "sigma_min": 0.1}
    alone = shares(1, 480, single, 20 * noise)
    assert bool(((alone - weights).abs() > error).any()), alone


@pytest.mark.parametrize("schedule", ["linear", "ve", "subvp"])
def test_the_step_of_the_corrector(schedule):
    """e = 2 A snr^2 min((d + k) / (|score|^2 + k / sigma^2), sigma^2), k = 64."""
    process = gaussian(schedule)
    data, x = NormalData(process, 0.3, 0.2), process.prior((4, 6), rows(4)).double()
    own = {"predictor": "none", "corrections": 1, "snr": 0.3}
    sampler = build("pc", 20, "uniform", **own)
    got = next(iter(sampler.trajectory(data, x, Still(0.7))))
    t, s = sampler.grid(process, 20)[:2]
    ratio = process.schedule(t).alpha / process.schedule(s).alpha
    score = process.score(data(x, t), x, t)
    z = torch.full((4, 6), 0.7, dtype=torch.float64)
    most = float(process.schedule(t).sigma ** 2)
    shrunk = (6 + 64) / (score.norm(dim=1) ** 2 + 64 / most)
    e = 2 * (0.3 * ratio) ** 2 * shrunk.clamp(max=most)
    assert bool((e < 2 * (0.3 * ratio) ** 2 * most).any())
    expected = x + e[:, None] * score + (2 * e[:, None]).sqrt() * z
    torch.testing.assert_close(got * ratio, expected, rtol=1e-9, atol=1e-12)


def test_a_correction_is_never_longer_than_is_stable():
    """Where the score is 0 the step is 2 (snr sigma)^2, far below 2 V >= 2 sigma^2."""
    process = gaussian("ve")
    data, x = NormalData(process, 0.3), torch.zeros(4, 2, dtype=torch.float64)
    sampler = build("pc", 20, "uniform", predictor="none")
    got = next(iter(sampler.trajectory(data, x, Still(0.7))))
    expected = torch.full_like(x, 2 * 0.16 * process.end.sigma * 0.7)
    torch.testing.assert_close(got, expected)


def test_the_corrector_keeps_a_marginal_and_heals_a_wrong_one():
    """T3.4: V stays within the bias of its steps; from 2 V it falls back."""
    n, size = 400, 400
    process = gaussian("karras", sigma_max=1.0)
    data = NormalData(process, 1.0)
    sampler = samplers.build({
        "name": "pc", "steps": 1, "grid": {"name": "uniform"}, "corrections": 150,
    })  # fmt: skip
    e = 2 * 0.16**2  # sigma^2 is less than d / |score|^2, V
    for scale in (1.0, 2.0):
        x = (2 * scale) ** 0.5 * rows(n).normal((n, size), torch.float64)
        *_, mean = sampler.trajectory(data, x, rows(n, seed=1))
        found = float((2 * mean).square().mean())  # the belief halves x
        assert found == pytest.approx(2 / (1 - e / 4), abs=0.05)


@pytest.mark.parametrize("d", [1, 2, 8])
def test_the_corrector_keeps_the_law_in_few_dimensions(d):
    """The step hardly follows x: in one dimension too the marginal stays."""
    n, process = 4000, gaussian("karras", sigma_max=1.0)
    data = NormalData(process, 0.25)
    sampler = samplers.build({
        "name": "pc", "steps": 1, "grid": {"name": "uniform"}, "corrections": 100,
    })  # fmt: skip
    x = 1.25**0.5 * rows(n).normal((n, d), torch.float64)
    *_, mean = sampler.trajectory(data, x, rows(n, seed=1))
    found = float((mean / 0.2).square().mean())  # the belief is x / 5
    assert found == pytest.approx(1.25, abs=0.12)
