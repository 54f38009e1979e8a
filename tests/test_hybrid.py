"""The bound of the likelihood and hybrid losses: T1.4, and iDDPM's ends."""

import math

import pytest
import torch
from oracles import Still, gaussian, number, rows
from second_moments import objective, reading
from torch import nn

from diffusion_cli.core import Normal, Point, Spec
from diffusion_cli.denoiser import Model
from diffusion_cli.networks import Network
from diffusion_cli.objectives.bound import bound
from diffusion_cli.parametrisations import parametrisations


def chain(process, levels, s2, spec):
    """The bound's terms at all times for beliefs whose error is its expectation."""
    t = torch.arange(1, levels + 1, dtype=torch.float64) / levels
    k = process.schedule(t)
    c = (s2 * k.sigma**2 / (k.alpha**2 * s2 + k.sigma**2))[:, None]
    mean = torch.zeros(levels, 1).double()
    return bound(Normal(mean, c), mean + c.sqrt(), t, process, spec), k


@pytest.mark.parametrize("s2", [0.25, 4.0])
@pytest.mark.parametrize("levels", [50, 1000])
def test_the_bound_of_an_exact_belief_is_the_entropy(s2, levels):
    """T1.4: prior KL + sum of KLs + decoder = E -log p(x_0), with any number of steps.

    The chain starts from the exact marginal: its KL is the information left at t = 1.
    """
    process = gaussian("linear", levels=levels)
    terms, k = chain(process, levels, s2, Spec((1,)))
    prior = ((k.alpha[-1] ** 2 * s2 + k.sigma[-1] ** 2) / k.sigma[-1] ** 2).log() / 2
    entropy = math.log(2 * math.pi * math.e * s2) / 2
    assert float(terms.mean() + prior) == pytest.approx(entropy, abs=1e-9)


def test_a_step_of_the_bound_is_the_kl_of_two_normals():
    """Against torch's own, with the reverse steps of the process."""
    process, t = gaussian("linear"), number(0.3)
    s = t - 1e-3
    x, x0 = (rows(6, i).normal((6, 1)).double() for i in (0, 1))
    q = Normal(0.3 * x, torch.full_like(x, 0.2))

    def law(belief):
        mean = process.reverse(belief, x, t, s, Still(0.0))
        return torch.distributions.Normal(
            mean, process.reverse(belief, x, t, s, Still(1.0)) - mean
        )

    for belief in (q, Point(q.mean)):
        kl = torch.distributions.kl_divergence(law(Point(x0)), law(belief))
        got = bound(belief, x0, t.expand(6), process, Spec((1,)))
        torch.testing.assert_close(got, 1000 * kl[:, 0], rtol=1e-6, atol=1e-9)


def test_the_decoder_of_images_sums_to_one_over_the_levels():
    process, levels = gaussian("linear"), 17
    spec = Spec((1,), codec={"levels": levels})
    x0 = (2 * torch.arange(levels) / (levels - 1) - 1)[:, None]
    t = number(1e-3).expand(levels)
    for mean, var in ((0.07, 1e-4), (-1.0, 0.01), (3.0, 1.0), (0.99, 0.3)):
        q = Normal(torch.full_like(x0, mean), torch.full_like(x0, var))
        nll = bound(q, x0, t, process, spec) / 1000
        assert float((-nll.double()).exp().sum()) == pytest.approx(1, abs=1e-6)
    far = Normal(torch.full_like(x0, 5.0).requires_grad_(), torch.full_like(x0, 1e-4))
    bound(far, x0, t, process, spec).sum().backward()
    assert far.mean.grad.isfinite().all() and (far.mean.grad[:-1] > 0).all()


@pytest.mark.parametrize("mean", ["eps", "v"])
def test_the_bound_is_finite_everywhere_and_so_are_its_gradients(mean):
    for schedule in ("linear", "cosine", "karras", "vp", "ve"):
        for name in ("learned", "npr", "sn"):
            process, part = gaussian(schedule), reading(name, mean)
            low, high = process.span
            t = torch.linspace(low, high, 65, dtype=torch.float64)
            x0 = rows(65).normal((65, 2)).clamp(-1, 1)
            x = process.corrupt(x0, t, rows(65, 1).normal((65, 2)))
            out = torch.randn(65, 4).requires_grad_()
            q = part.posterior(out, x, t, process)
            for spec in (Spec((2,)), Spec((2,), codec={"levels": 256})):
                bound(q, x0, t, process, spec).sum().backward(retain_graph=True)
                assert out.grad.isfinite().all()


def test_the_hybrid_teaches_the_mean_by_its_error_alone():
    """The gradient of the first output is that of the simple loss."""
    process = gaussian("linear")
    x0 = rows(32).normal((32, 1))
    gradients = {}
    for name in ("denoise", "hybrid"):
        own = {"weight": {"name": "simple"}}
        net = Gains(process)
        part = reading("learned") if name == "hybrid" else Single()
        model = Model(process, net, part, Spec((1,)))
        objective(name, **own)(model, x0, rows(32, 1)).sum().backward()
        gradients[name] = net.gains.grad
    torch.testing.assert_close(gradients["hybrid"][0], gradients["denoise"][0])
    assert gradients["denoise"][1] == 0 and gradients["hybrid"][1] != 0


class Gains(Network):
    """Two outputs, each a multiple of the state."""

    def __init__(self, process):
        super().__init__()
        self.gains = nn.Parameter(torch.tensor([0.3, 0.1]))

    def forward(self, x, level, label=None, extra=None):
        return torch.cat([gain * x for gain in self.gains], dim=1)


class Single(parametrisations["eps"]):
    """The first of two outputs, read as the noise."""

    def out(self, state):
        return reading("learned").out(state)

    def posterior(self, out, x, t, process):
        return super().posterior(out.chunk(2, dim=1)[0], x, t, process)


def test_the_bound_prefers_the_variance_that_the_error_has():
    """The gradient in C of E KL vanishes where C = E (x_0 - mean)^2."""
    process, t, n = gaussian("vp"), number(0.4).expand(2), 2
    x0 = torch.tensor([[0.3], [-0.3]]).double()
    for c, sign in ((0.05, -1), (0.09, 0), (0.2, 1)):
        var = torch.full((n, 1), c).double().requires_grad_()
        bound(
            Normal(torch.zeros(n, 1).double(), var), x0, t, process, Spec((1,))
        ).sum().backward()
        slope = float(var.grad.sum())
        assert slope == pytest.approx(0, abs=1e-9) if sign == 0 else slope * sign > 0


@pytest.mark.parametrize("name", ["hybrid", "second_moment", "denoise", "vlb"])
def test_objectives_refuse_what_they_cannot_train(name):
    own = {} if name in ("vlb", "second_moment") else {"weight": {"name": "simple"}}
    loss, process = objective(name, **own), gaussian("linear")
    fitting = {
        "hybrid": {"learned", "npr", "sn"},
        "second_moment": {"npr", "sn"},
        "denoise": {"eps"},
        "vlb": {"eps", "learned", "npr", "sn"},
    }
    for each in ("eps", "learned", "npr", "sn"):
        part = (
            parametrisations.build({"name": "eps"}) if each == "eps" else reading(each)
        )
        model = Model(process, Gains(process), part, Spec((1,)))
        assert bool(loss.fits(model)) == (each not in fitting[name])
