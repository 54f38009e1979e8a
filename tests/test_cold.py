"""Laws of the cold process: hot as a special case, reverse steps (T7.5, T7.6, MARG)."""

from itertools import pairwise

import pytest
import torch
from degraded import SPEC, UNIFORM, VARIANTS, N, cold, fitted, images
from oracles import Still, gaussian, number, rows
from torch import nn

from diffusion_cli.core import Point, Spec
from diffusion_cli.processes.cold import Cold
from diffusion_cli.processes.degradation import Operator
from diffusion_cli.samplers import samplers

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
