"""The oracles agree with what they are derived from: enumeration and autograd."""

import pytest
import torch
from oracles import Mixture, gaussian, number, rows

from diffusion_cli.core import Normal

TIMES = torch.tensor([0.15, 0.4, 0.8], dtype=torch.float64)


def mixture(process, spread=False):
    weights = torch.tensor([0.2, 0.5, 0.3])
    means = torch.tensor([[-2.0, 0.5], [0.0, 1.0], [1.5, -1.0]])
    return Mixture(process, weights, means, torch.tensor([0.1, 0.4, 0.2]), spread)


@pytest.mark.parametrize("schedule", ["vp", "karras", "straight"])
def test_the_beliefs_of_a_mixture_are_those_of_its_density(schedule):
    """FIX-M: Tweedie's mean and variance from the gradients of log p_t."""
    process = gaussian(schedule)
    data, x = mixture(process, spread=True), rows(3).normal((3, 2)).double()
    x.requires_grad_()
    (score,) = torch.autograd.grad(data.logp(x, TIMES).sum(), x, create_graph=True)
    curve = [torch.autograd.grad(score[:, i].sum(), x, retain_graph=True)[0][:, i]
             for i in range(2)]  # fmt: skip
    torch.testing.assert_close(data.score(x, TIMES), score)
    k = process.at(TIMES, x)
    q = data(x, TIMES)
    assert isinstance(q, Normal)
    torch.testing.assert_close(q.mean, (x + k.sigma**2 * score) / k.alpha)
    spread = k.sigma**2 / k.alpha**2 * (1 + k.sigma**2 * torch.stack(curve, 1))
    torch.testing.assert_close(q.var, spread)
    torch.testing.assert_close(process.score(q, x, TIMES), score)


def test_samples_of_a_mixture_have_its_moments_and_its_distribution_function():
    n = 40_000
    data = mixture(gaussian("vp"))
    x = data.sample(n, rows(n))
    mean = data.weights @ data.means
    square = data.weights @ (data.means**2 + data.variances[:, None])
    spread = (square - mean**2).sqrt()
    assert bool(((x.mean(0) - mean).abs() < 4 * spread / n**0.5).all())
    assert bool((((x**2).mean(0) - square).abs() < 8 * square / n**0.5).all())
    line = Mixture(data.process, data.weights, data.means[:, :1], data.variances)
    at = torch.tensor([[-1.5], [0.0], [1.2]], dtype=torch.float64)
    expected = (x[:, :1] < at.T).double().mean(0)
    found = line.cdf(at, number(0.0))
    assert bool(((found - expected).abs() < 4 * 0.5 / n**0.5).all())
