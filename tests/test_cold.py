"""Laws of degradations and of the cold process over the registry: T7.5, T7.6, MARG."""

import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from choices import node, options
from oracles import Still, gaussian, number, rows
from tiny import interrupted, outcome, place, tiny
from torch import nn

from diffusion_cli import assemble, checkpoint, config
from diffusion_cli.commands import train
from diffusion_cli.core import Point, Spec
from diffusion_cli.couplings import couplings
from diffusion_cli.datasets import datasets
from diffusion_cli.denoiser import Model
from diffusion_cli.errors import ConfigError
from diffusion_cli.networks import Network
from diffusion_cli.objectives import objectives
from diffusion_cli.parametrisations import parametrisations
from diffusion_cli.place import trained
from diffusion_cli.processes import processes
from diffusion_cli.processes.cold import Cold
from diffusion_cli.processes.degradation import Operator, operators
from diffusion_cli.rng import Rng
from diffusion_cli.samplers import samplers

__all__ = ["place"]  # a fixture

SPEC = Spec((3, 6, 4))
N = 5
TIMES = [0.02, 0.1, 0.3, 0.5, 0.77, 0.98]
VARIANTS = [
    {"name": "blur"},
    {"name": "pixelate"},
    {"name": "mask"},
    {"name": "mask", "centre": "random"},
    {"name": "desaturate"},
    {"name": "fade"},
    {"name": "fade", "towards": "others"},
]
UNIFORM = {"name": "uniform"}
Digits = datasets["digits"]


def images(count=N, seed=0, shape=SPEC.shape):
    return rows(count, seed).normal((count, *shape)).double() / 2


def others(path):
    assert path == "others"
    return images(40, 9).float()


def cold(operator, data=SPEC, **own):
    node = {"name": "cold", "operator": operator, **own}
    return processes.build(node, data=data, read=others)


def fitted(operator, **own):
    process = cold(operator, **own)
    process.fit(iter([images(64, 1).float(), images(64, 2).float()]))
    return process


def test_every_operator_is_tested():
    assert {variant["name"] for variant in VARIANTS} == set(operators.names())


@pytest.mark.parametrize("operator", VARIANTS, ids=str)
def test_nothing_happens_at_0(operator):
    process, x0 = fitted(operator), images().float()
    noise = process.noise(x0, rows(N))
    for t in (number(0.0), torch.zeros(N, dtype=torch.float64)):
        assert torch.equal(process.corrupt(x0, t, noise), x0)


@pytest.mark.parametrize("operator", VARIANTS, ids=str)
def test_severity_is_monotone_and_samples_keep_their_own_times(operator):
    process, x0 = fitted(operator), images()
    noise = process.noise(x0, rows(N))
    last = torch.zeros(N, dtype=torch.float64)
    for t in torch.linspace(0, 1, 41, dtype=torch.float64)[1:]:
        x = process.corrupt(x0, t, noise)
        gone = (x - x0).flatten(1).square().sum(1)
        assert x.isfinite().all() and bool((gone >= last - 1e-12).all())
        last = gone
    assert bool((last > 0.1).all())
    t = torch.tensor([0.0, 0.2, 0.5, 0.9, 1.0], dtype=torch.float64)
    mixed = process.corrupt(x0, t, noise)
    for i in range(N):
        alone = process.corrupt(x0[i : i + 1], t[i], noise[i : i + 1])
        torch.testing.assert_close(mixed[i : i + 1], alone, rtol=1e-9, atol=1e-12)


def test_what_is_gone_at_s_is_gone_at_t():
    """D(x, t) is a function of D(x, s) for s < t: information only falls."""
    x0 = images()
    blur, pixelate, mask = (cold({"name": n}) for n in ("blur", "pixelate", "mask"))
    none = blur.noise(x0, rows(N))
    s, t = number(0.5), number(0.7)
    rest = ((t / (1 - t)) ** 2 - (s / (1 - s)) ** 2).sqrt()  # variances add up
    part = blur.corrupt(x0, s, none)
    again = blur.corrupt(part, rest / (1 + rest), none)
    torch.testing.assert_close(again, blur.corrupt(x0, t, none), rtol=0, atol=1e-12)
    stages = len(pixelate.operator.rows) - 1
    part = pixelate.corrupt(x0, number(1 / stages), none)
    for t in (1 / stages, 0.7, 0.9, 1.0):
        again = pixelate.corrupt(part, number(t), none)
        whole = pixelate.corrupt(x0, number(t), none)
        torch.testing.assert_close(again, whole, rtol=0, atol=1e-12)
    ones, noise = torch.ones_like(x0), mask.noise(x0, rows(N))
    kept = [mask.corrupt(ones, number(t), noise) for t in TIMES]
    assert all(bool((late <= early).all()) for early, late in pairwise(kept))


@pytest.mark.parametrize("name", ["blur", "pixelate"])
@pytest.mark.parametrize(
    "shape", [(1, 8, 8), (3, 6, 4), (1, 7, 5), (1, 28, 28), (1, 8, 2), (1, 2, 8)]
)
def test_the_end_of_averaging_is_the_mean_of_each_channel(name, shape):
    process, x0 = cold({"name": name}, Spec(shape)), images(N, 0, shape)
    noise = process.noise(x0, rows(N))
    means = x0.mean((2, 3), keepdim=True)
    end = process.corrupt(x0, number(1.0), noise)
    torch.testing.assert_close(end, means.expand_as(x0), rtol=0, atol=1e-12)
    for t in TIMES:  # and the mean is kept on the way there
        x = process.corrupt(x0, number(t), noise)
        torch.testing.assert_close(x.mean((2, 3), keepdim=True), means)


def test_blur_is_a_gaussian_kernel_with_mirrored_edges():
    process = cold({"name": "blur", "width": 0.125}, Spec((1, 32, 32)))
    point = torch.zeros(1, 1, 32, 32).double()
    point[0, 0, 16, 12] = 1
    x = process.corrupt(point, number(0.4), process.noise(point, rows(1)))[0, 0]
    std = 0.125 * 32 * 0.4 / 0.6
    offset = torch.arange(32, dtype=torch.float64)
    row = (-((offset - 16) ** 2) / (2 * std**2)).exp()
    column = (-((offset - 12) ** 2) / (2 * std**2)).exp()
    kernel = row[:, None] * column / (row.sum() * column.sum())
    torch.testing.assert_close(x, kernel, rtol=0, atol=1e-5)


def test_pixelate_averages_growing_blocks():
    process, x0 = cold({"name": "pixelate"}, Spec((1, 8, 8))), images(2, 0, (1, 8, 8))
    noise = process.noise(x0, rows(2))
    for stage, block in enumerate((1, 2, 4, 8)):
        x = process.corrupt(x0, number(stage / 3), noise)
        small = torch.nn.functional.avg_pool2d(x0, block)
        large = small.repeat_interleave(block, 2).repeat_interleave(block, 3)
        torch.testing.assert_close(x, large)


def test_a_mask_grows_from_its_centre():
    process = cold({"name": "mask", "centre": "random"}, Spec((1, 16, 16)))
    ones = torch.ones(200, 1, 16, 16).double()
    noise = process.noise(ones, rows(200))
    x = process.corrupt(ones, number(0.2), noise)
    darkest = x.flatten(1).argmin(1)
    place = torch.stack((darkest // 16, darkest % 16), 1)
    expected = (noise * 16).floor()
    assert torch.equal(place.double(), expected.double())
    assert len(place.unique(dim=0)) > 100  # everywhere
    fixed = cold({"name": "mask"}, Spec((1, 16, 16)))
    middle = fixed.corrupt(ones[:1], number(0.2), fixed.noise(ones[:1], rows(1)))[0, 0]
    assert float(middle[7, 7]) == pytest.approx(float(middle[8, 8]))
    assert float(middle[7, 7]) == float(middle.min())
    assert not fixed.corrupt(ones, number(1.0), fixed.noise(ones, rows(200))).any()


def test_a_mask_has_the_depth_that_its_formula_says():
    """(1 - exp(-d^2 / (2 std^2)))^holes, std a part of the longer side."""
    process = cold({"name": "mask", "width": 0.2, "holes": 3}, Spec((1, 6, 4)))
    ones = torch.ones(1, 1, 6, 4).double()
    x = process.corrupt(ones, number(0.4), process.noise(ones, rows(1)))[0, 0]
    std = 0.2 * 6 * 0.4 / 0.6
    for i, j in ((0, 0), (2, 3), (5, 1)):
        square = (i + 0.5 - 3) ** 2 + (j + 0.5 - 2) ** 2
        expected = (1 - math.exp(-square / (2 * std**2))) ** 3
        assert float(x[i, j]) == pytest.approx(expected)


def test_a_blur_is_as_wide_as_the_longer_side_says():
    """A cosine along the shorter one is damped by exp(-(std w)^2 / 2)."""
    process = cold({"name": "blur", "width": 0.1}, Spec((1, 8, 4)))
    wave = torch.cos(math.pi / 4 * (torch.arange(4).double() + 0.5)).expand(1, 1, 8, 4)
    x = process.corrupt(wave, number(0.5), process.noise(wave, rows(1)))
    damped = math.exp(-((0.1 * 8 * math.pi / 4) ** 2) / 2)
    torch.testing.assert_close(x, damped * wave)


def test_desaturate_ends_in_grey():
    process, x0 = cold({"name": "desaturate"}), images()
    grey = process.corrupt(x0, number(1.0), process.noise(x0, rows(N)))
    luma = torch.tensor([0.299, 0.587, 0.114]).double()  # ITU-R BT.601
    expected = torch.einsum("c,bchw->bhw", luma, x0)
    for channel in range(3):
        torch.testing.assert_close(grey[:, channel], expected)


@pytest.mark.parametrize("name", ["blur", "pixelate", "mask", "desaturate"])
def test_degradations_of_images_refuse_what_is_none(name):
    with pytest.raises(ConfigError) as caught:
        cold({"name": name}, Spec((2,)))
    assert "hint:" in caught.value.render()
    assert f"`{name}`" in caught.value.message and "(2)" in caught.value.message


def test_desaturate_refuses_grey_images():
    with pytest.raises(ConfigError, match="three channels") as caught:
        cold({"name": "desaturate"}, Spec((1, 8, 8)))
    assert "dataset=" in caught.value.hint


# hot is a special case


def test_fading_to_noise_is_the_path_of_flow_matching():
    hot, process = gaussian("straight"), cold({"name": "fade"}, jitter=0.0)
    x0 = images()
    t = torch.tensor([0.1, 0.3, 0.5, 0.9, 1.0], dtype=torch.float64)
    noise = process.noise(x0, rows(N))
    assert torch.equal(noise, hot.noise(x0, rows(N)))
    torch.testing.assert_close(
        process.corrupt(x0, t, noise), hot.corrupt(x0, t, noise), rtol=0, atol=1e-15
    )
    n = 20_000
    prior = process.prior((n, 3, 6, 4), rows(n)).flatten()
    error = 4 / len(prior) ** 0.5
    assert abs(float(prior.mean())) < error
    assert abs(float(prior.var()) - 1) < 2**0.5 * error


@pytest.mark.parametrize(("t", "s"), [(1.0, 0.6), (0.7, 0.3), (0.3, 0.02), (0.2, 0.0)])
def test_inverting_a_fade_is_ddim(t, s):
    """T7.6: K1 = BRIDGE with lam = 0, in float64."""
    hot, process = gaussian("straight"), cold({"name": "fade"})
    x, q, (t, s) = images(N, 1), Point(images(N, 2)), map(number, (t, s))
    ddim = hot.reverse(q, x, t, s, rows(N), eta=0.0)
    got = process.reverse(q, x, t, s, rows(N).at(3), kernel="improved")
    torch.testing.assert_close(got, ddim, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("fresh", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("t", "s"), [(1.0, 0.6), (0.7, 0.3), (0.3, 0.02)])
def test_mixing_is_the_bridge(t, s, fresh):
    """T7.6: K2 = BRIDGE with lam = r sigma_s, and r = 1 is the restart, K0."""
    hot, process = gaussian("straight"), cold({"name": "fade"})
    x, q, (t, s) = images(N, 1), Point(images(N, 2)), map(number, (t, s))
    a, b = hot.schedule(t), hot.schedule(s)
    lam = fresh * b.sigma
    for z in (0.0, 1.0):
        kept = (b.sigma**2 - lam**2).sqrt() * (x - a.alpha * q.mean) / a.sigma
        bridge = b.alpha * q.mean + kept + lam * z
        how = {"kernel": "mix", "fresh": fresh}
        got = process.reverse(q, x, t, s, Still(z), **how)
        torch.testing.assert_close(got, bridge, rtol=1e-12, atol=1e-12)
    if fresh == 1:
        how = {"kernel": "restart"}
        again = process.reverse(q, x, t, s, Still(1.0), **how)
        torch.testing.assert_close(got, again, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("operator", VARIANTS[:-2], ids=str)
def test_only_gaussian_noise_can_be_mixed(operator):
    with pytest.raises(ValueError, match="kernel"):
        fitted(operator).check(kernel="mix")
    fitted(operator).check(kernel="restart")
    with pytest.raises(ValueError, match="fresh"):
        cold({"name": "fade"}).check(kernel="mix", fresh=1.5)
    with pytest.raises(ValueError, match="kernel"):
        fitted({"name": "fade", "towards": "others"}).check(kernel="mix")
    cold({"name": "fade"}).check(kernel="mix", fresh=0.5)


# reverse steps


class Additive(Operator):
    """D(x, t) = x + t e with a constant e: T7.5."""

    def __init__(self, e):
        super().__init__()
        self.e = e

    def forward(self, x0, t, noise):
        return x0 + t * self.e

    def end(self, shape, rng):
        raise NotImplementedError


class Restorer(nn.Module):
    """A restorer that says the same whatever it sees, or the truth."""

    def __init__(self, process, answer):
        super().__init__()
        self.process, self.answer = process, answer

    def forward(self, x, t):
        return Point(self.answer)


def walk(process, answer, x, steps=10, rng=None, **how):
    node = {"name": "ancestral", "steps": steps, "grid": UNIFORM, **how}
    path = samplers.build(node).trajectory(
        Restorer(process, answer), x, rng or rows(len(x))
    )
    *_, x = path
    return x


def test_the_improved_step_forgives_any_restorer():
    """T7.5: for D = x + t e it returns x_0 whatever it is told; naive does not."""
    x0, e = images(), images(1, 7)
    process = Cold(Additive(e), levels=10)  # an operator that is not registered
    x1 = process.corrupt(x0, number(1.0), process.noise(x0, rows(N)))
    for garbage in (torch.zeros_like(x0), 100 * images(N, 5)):
        got = walk(process, garbage, x1, kernel="improved")
        torch.testing.assert_close(got, x0, rtol=0, atol=1e-11)
        naive = walk(process, garbage, x1, kernel="restart")
        assert float((naive - x0).abs().max()) > 0.1


@pytest.mark.parametrize("kernel", ["improved", "restart"])
@pytest.mark.parametrize("operator", VARIANTS, ids=str)
def test_a_perfect_restorer_returns_the_data(operator, kernel):
    """T7.5, idempotence: for every operator, along the whole way."""
    process, x0 = fitted(operator), images()
    x1 = process.corrupt(x0, number(1.0), process.noise(x0, rows(N)))
    got = walk(process, x0, x1, kernel=kernel)
    torch.testing.assert_close(got, x0, rtol=0, atol=1e-9)


@pytest.mark.parametrize("kernel", ["improved", "restart"])
@pytest.mark.parametrize("operator", VARIANTS, ids=str)
def test_a_reverse_step_keeps_the_marginal(operator, kernel):
    """MARG for a known x_0: x_s is D(x_0, s) for the randomness of the trajectory."""
    process, x0 = fitted(operator), images()
    rng = rows(N).child("sample")
    noise, (t, s) = process.noise(x0, rng), (number(0.8), number(0.3))
    x = process.corrupt(x0, t, noise)
    got = process.reverse(Point(x0), x, t, s, rng.at(4), kernel=kernel)
    if kernel == "improved":
        torch.testing.assert_close(got, process.corrupt(x0, s, noise))
    else:  # another draw of the same law
        again = process.noise(x0, rng.at(4).child("restart"))
        torch.testing.assert_close(got, process.corrupt(x0, s, again))


def test_mixing_keeps_the_gaussian_marginal():
    """MARG: N(alpha_s x_0, sigma_s^2) at s from exact states at t, for any r."""
    process, n = cold({"name": "fade"}, Spec((1,))), 200_000
    x0 = torch.full((n, 1), 0.7).double()
    t, s = number(0.8), number(0.3)
    x = process.corrupt(x0, t, process.noise(x0, rows(n)))
    for fresh in (0.0, 0.4, 1.0):
        rng = rows(n, 3).at(1)
        got = process.reverse(Point(x0), x, t, s, rng, kernel="mix", fresh=fresh)
        error = 4 * 0.3 / n**0.5
        assert abs(float(got.mean()) - 0.7 * 0.7) < error
        assert abs(float(got.std()) - 0.3) < error


def test_what_is_visible_stays_as_it_is():
    """Inpainting by the improved step: D(x, t) + (1 - m_t) belief."""
    process = fitted({"name": "mask", "centre": "random"}, levels=10)
    x0, rng = images(), rows(N).child("sample")
    noise = process.noise(x0, rng)
    kept = process.corrupt(torch.ones_like(x0), number(0.5), noise)
    x = kept * x0
    for i, (t, s) in enumerate(pairwise([0.5, 0.3, 0.1, 0.0])):
        t, s = number(t), number(s)
        x = process.reverse(Point(torch.ones_like(x0)), x, t, s, rng.at(i))
    torch.testing.assert_close(x, kept * x0 + (1 - kept))


@pytest.mark.parametrize("operator", VARIANTS, ids=str)
def test_randomness_belongs_to_the_sample(operator):
    """Prior and reverse see the same stream: whatever the batch, and the step."""
    process = fitted(operator)
    rng, own = rows(6, 2), rows(6, 2).of(torch.tensor([4]))
    shape = (6, *SPEC.shape)
    x, alone = process.prior(shape, rng), process.prior((1, *SPEC.shape), own)
    torch.testing.assert_close(x[4:5], alone, rtol=0, atol=1e-6)
    assert not torch.equal(x[3], x[4])
    belief = images(6, 3).float()
    whole = walk(process, belief, x, rng=rng)
    part = walk(process, belief[4:5], x[4:5], rng=own)
    torch.testing.assert_close(whole[4:5], part, rtol=0, atol=1e-5)
    assert torch.equal(whole, walk(process, belief, x, rng=rng))


# the prior


@pytest.mark.parametrize("name", ["blur", "pixelate"])
def test_the_prior_has_the_statistics_of_the_means(name):
    """Mean and covariance of the per-channel means of the data, and a little noise."""
    process, n = cold({"name": name}, jitter=0.0), 40_000
    mix = torch.tensor([[0.3, 0, 0], [0.2, 0.1, 0], [-0.1, 0.2, 0.05]]).double()
    place = torch.tensor([0.1, -0.3, 0.5]).double()
    means = rows(2000).normal((2000, 3)).double() @ mix.T + place
    x0 = images(2000, 1) + means[:, :, None, None]
    exact = x0.mean((2, 3))
    process.fit(part.float() for part in x0.split(300))
    x = process.prior((n, *SPEC.shape), rows(n, 5))
    assert torch.equal(x, x[:, :, :1, :1].expand_as(x))
    drawn = x[:, :, 0, 0].double()
    spread = exact.T.cov()
    error = 4 * spread.diagonal().sqrt() / n**0.5
    assert bool(((drawn.mean(0) - exact.mean(0)).abs() < error).all())
    scale = spread.diagonal().sqrt()
    gap = (drawn.T.cov() - spread) / (scale[:, None] * scale)
    assert float(gap.abs().max()) < 4 * (2 / n) ** 0.5


def test_few_images_have_the_covariance_of_a_sample():
    """Divided by N - 1; that of grey images in three channels is singular."""
    process, x0 = cold({"name": "blur"}), images(3, 1).float()
    for seed in range(6):  # the least eigenvalues are rounding, and some negative
        grey = images(3, seed)[:, :1].expand_as(x0).float()
        for given in (x0, grey):
            process.fit(iter([given]))
            factor = process.operator.factor
            exact = given.double().mean((2, 3)).T.cov()
            torch.testing.assert_close(factor @ factor.T, exact, rtol=1e-6, atol=1e-9)


def test_what_is_mixed_in_is_new_at_every_step():
    process, x = cold({"name": "fade"}), images(N, 1)
    q, how = Point(images(N, 2)), {"kernel": "mix", "fresh": 1.0}
    one, two = (
        process.reverse(q, x, number(0.7), number(0.3), rows(N).at(step), **how)
        for step in (1, 2)
    )
    assert bool((one != two).all())


def test_jitter_breaks_the_symmetry():
    still, noisy = (fitted({"name": "blur"}, jitter=std) for std in (0.0, 0.002))
    n, shape = 500, (500, *SPEC.shape)
    noise = noisy.prior(shape, rows(n)) - still.prior(shape, rows(n))
    assert abs(float(noise.std()) / 0.002 - 1) < 4 / (2 * noise.numel()) ** 0.5
    across = noise.flatten(1).T.corrcoef() - torch.eye(SPEC.numel)
    assert float(across.abs().max()) < 5.5 / n**0.5


def test_means_of_one_value_are_fine():
    process = cold({"name": "blur"}, jitter=0.0)
    process.fit(iter([torch.full((7, *SPEC.shape), 0.25)]))
    x = process.prior((4, *SPEC.shape), rows(4))
    torch.testing.assert_close(x, torch.full_like(x, 0.25))


def distances(x, known):
    """From each sample to the nearest that is known."""
    return torch.cdist(x.flatten(1).double(), known.flatten(1).double()).min(1).values


def test_the_priors_of_the_others():
    shape = (50, *SPEC.shape)
    assert not fitted({"name": "mask"}, jitter=0.0).prior(shape, rows(50)).any()
    data = images(20, 1).float()
    for few in (8, 64):  # fewer and more than there are
        grey = cold({"name": "desaturate", "examples": few}, jitter=0.0)
        grey.fit(iter([data[:12], data[12:]]))
        known = grey.corrupt(data[:few], number(1.0), grey.noise(data[:few], rows(few)))
        x = grey.prior(shape, rows(50))
        gaps = distances(x, known)
        assert float(gaps.max()) < 1e-5 and len(x.unique(dim=0)) > 5
    pool = others("others")
    fade = fitted({"name": "fade", "towards": "others", "examples": 16}, jitter=0.0)
    x = fade.prior(shape, rows(50))
    gaps = distances(x, pool)
    assert float(gaps.max()) < 1e-6 and 10 < len(x.unique(dim=0)) <= 16


def test_a_fade_needs_a_place_to_read_from():
    node = {"name": "cold", "operator": {"name": "fade", "towards": "others"}}
    process = processes.build(node, data=SPEC, read=None)
    with pytest.raises(ConfigError, match="towards"):
        process.fit(iter([images().float()]))
    wrong = processes.build(node, data=Spec((3, 8, 8)), read=others)
    with pytest.raises(ConfigError, match="towards"):
        wrong.fit(iter([]))


# reading and loss


class Gain(Network):
    """F = gain x, which notes what it saw."""

    def __init__(self, gain):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))

    def forward(self, x, level, label=None, extra=None):
        self.seen = x, level
        return self.gain * x


def model(process):
    reading = parametrisations.build({"name": "clean"})
    return Model(process, Gain(0.5), reading, SPEC)


def test_the_network_sees_the_state_and_the_time():
    net, x = model(fitted({"name": "blur"})), images().float()
    t = torch.linspace(0.1, 1, N, dtype=torch.float64)
    q = net(x, t)
    seen, level = net.network.seen
    assert torch.equal(seen, x) and torch.equal(q.mean, x / 2)
    torch.testing.assert_close(level.double(), t, rtol=0, atol=1e-7)


def test_l1_is_the_absolute_and_x0_the_squared_error():
    net, x0 = model(fitted({"name": "pixelate"})), images(64).float()
    parts = {}
    for name in ("l1", "denoise"):
        weight = {"weight": {"name": "x0"}} if name == "denoise" else {}
        node = {"name": name, "time": UNIFORM, **weight}
        law = objectives.build(node, coupling=couplings.build({"name": "independent"}))
        losses = law(net, x0, rows(64))
        x = net.process.corrupt(x0, law.times, x0[:, :0, 0, 0])
        gap = x0 - x / 2
        parts[name] = gap.abs() if name == "l1" else gap.square()
        assert losses.dtype == torch.float32
        torch.testing.assert_close(losses, parts[name].flatten(1).mean(1))
        assert (law.times * 50).round().unique().numel() > 20


# runs


def run(operator, **own):
    """A tiny run on digits, 8 x 8."""
    return {
        "dataset": {"name": "digits"},
        "process": {"name": "cold", "operator": operator, "levels": 10},
        "parametrisation": {"name": "clean"},
        "objective": {"name": "l1", "time": {"name": "uniform"}},
        **own,
    }


RUNS = [  # what no yaml chooses, or what `fit` has found
    {"name": "blur"},
    {"name": "pixelate"},
    {"name": "mask", "centre": "random"},
    {"name": "fade", "towards": "others", "examples": 8},
]


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("operator", RUNS, ids=str)
def test_a_cold_run_resumes_exactly_and_keeps_what_it_fitted(operator):
    own = run(operator)
    Path("others").mkdir()
    Digits.save(images(9, 0, (1, 8, 8)), Digits().spec, Path("others"), 0)
    train.run(tiny(out="whole", **own), [])
    for step in (3, 8):
        assert interrupted(Path("parts"), step, **own) == 143
    train.run(tiny(out="parts", **own), [])
    assert outcome(Path("parts")) == outcome(Path("whole"))
    process = trained(checkpoint.load("whole")).process
    rng = Rng(0, torch.arange(300))
    x = process.prior((300, 1, 8, 8), rng)
    if operator["name"] in ("blur", "pixelate"):
        # mean and spread of the brightness of the digits, which `fit` alone knows
        assert float(x.mean()) == pytest.approx(-0.389, abs=0.02)
        assert float(x.mean((1, 2, 3)).std()) == pytest.approx(0.067, abs=0.012)


# what goes with what

COLD = [name for name in options("process") if name.startswith("cold_")]
REFUSED = {
    "parametrisation": ["edm", "eps", "score", "v", "velocity", "x0"],
    "objective": ["edm", "likelihood", "min_snr", "simple", "velocity", "classify"],
    "sampler": ["ancestral", "ddim", "dpmpp", "eab", "euler", "heun"],
}
REASONS = {
    "ancestral": "steps: must be <= 50, the times it knows",
    "ddim": "`cold` takes no `eta`",
    "classify": "`classify` teaches the label",
}


def chosen(process, **others):
    """A cold process with its partners, or others, around a small network."""
    names = {"parametrisation": "clean", "objective": "l1", "sampler": "improved"}
    parts = {role: node(role, name) for role, name in (names | others).items()}
    size = {"name": "mlp", "width": 16, "depth": 1, "fourier": 0}
    network, _ = config.roles()["network"].check(size, "network")
    return parts | {
        "seed": 0,
        "process": node("process", process),
        "dataset": {"name": "image_folder"},
        "coupling": {"name": "independent"},
        "network": network,
        "guidance": [],
    }


@pytest.mark.parametrize("objective", ["l1", "x0"])
@pytest.mark.parametrize("process", COLD)
def test_every_cold_process_trains_and_samples_two_steps(process, objective):
    values = chosen(process, objective=objective)
    parts = assemble.parts(values, SPEC)
    parts.model.process.fit(iter([images(16).float()]))
    losses = parts.objective(parts.model, images(8).float(), rows(8))
    losses.mean().backward()
    grads = [weight.grad for weight in parts.model.parameters()]
    assert losses.isfinite().all() and any(bool(grad.any()) for grad in grads)
    sampler = assemble.sampler(values["sampler"], parts.model.process, steps=2)
    x = parts.model.process.prior((8, *SPEC.shape), rows(8))
    states = list(sampler.trajectory(parts.denoiser, x, rows(8)))
    assert len(states) == 2 and states[-1].isfinite().all()


@pytest.mark.parametrize(
    ("role", "name"), [(role, name) for role in REFUSED for name in REFUSED[role]]
)
def test_what_asks_for_more_is_refused_with_a_reason(role, name):
    with pytest.raises(ConfigError) as caught:
        assemble.parts(chosen("cold_blur", **{role: name}), SPEC)
    assert REASONS.get(name, "`cold` is not one") in caught.value.render()
    if name == "ancestral":
        assert caught.value.hint == "sampler.steps=50"


def test_the_kernels_are_those_of_cold_processes():
    values = chosen("cold_fade") | {"process": node("process", "flow")}
    with pytest.raises(ConfigError) as caught:
        assemble.parts(values, SPEC)
    assert "`gaussian` takes no `kernel`" in caught.value.render()
    values = chosen("cold_blur")
    values["sampler"] = {**values["sampler"], "kernel": "mix"}
    with pytest.raises(ConfigError) as caught:
        assemble.parts(values, SPEC)
    assert "sampler.kernel: must be improved or restart" in caught.value.render()
