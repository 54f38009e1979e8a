"""The variational bound of a diffusion: closed forms on normal data (T1.4)."""

import math

import pytest
import torch
from measured import Stub
from oracles import SCHEDULES, Mixture, NormalData, gaussian, number, rows

from diffusion_cli.core import Spec
from diffusion_cli.metrics import metrics
from diffusion_cli.metrics.dequantising import decoded
from diffusion_cli.objectives import weights

S2, M = 0.25, 0.3


def elbo(**own):
    return metrics.build({"name": "elbo", **own})


def snr(process, t):
    k = process.schedule(number(t))
    return float((k.alpha / k.sigma) ** 2)


def integral(gap, low, high):
    """1/2 int E|x_0 - E[x_0 | x_t]|^2 dSNR for N(M, S2) at x_0 = M + gap."""

    def primitive(r):
        return math.log1p(r * S2) + (1 - gap**2 / S2) / (1 + r * S2)

    return (primitive(high) - primitive(low)) / 2


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_loss_of_a_normal_in_closed_form(name):
    """Pointwise in x_0, with a schedule's own range of SNR; 0 where alpha vanishes."""
    process = gaussian(name)
    x0 = torch.tensor([[M], [M + 0.4], [M - 1.0]]).double().repeat(3000, 1)
    found = elbo(times=16).diffusion(
        NormalData(process, S2, M), x0, number(process.span[0]), rows(9000)
    )
    ends = snr(process, process.span[1]), snr(process, process.span[0])
    for i, gap in enumerate((0.0, 0.4, -1.0)):
        mine = found[i::3]
        doubt = float(mine.std()) / math.sqrt(len(mine))
        assert float(mine.mean()) == pytest.approx(integral(gap, *ends), abs=4 * doubt)
        assert doubt < 0.06


@pytest.mark.parametrize("name", ["vp", "straight", "linear"])
def test_it_is_the_loss_with_the_weight_of_the_likelihood(name):
    """The same integral over t with w = -SNR' / 2, by a fine sum over times."""
    process, n = gaussian(name), 4000
    data, x0 = NormalData(process, 0.1, M), torch.full((n, 2), 0.5).double()
    low, high = process.span
    x, noise = [], rows(n).child("own").normal((n, 2), torch.float64)
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    t = low * (high / low) ** u * (1 - 1e-9)  # even in log t
    x = process.corrupt(x0, t, noise)
    error = (x0 - data(x, t).mean).square().sum(1)
    weighted = weights.build({"name": "likelihood"})(process, t) * error
    own = weighted * t * math.log(high / low)
    found = elbo(times=4).diffusion(data, x0, number(low), rows(n))
    doubt = math.sqrt(float(own.var() + found.var()) / n)
    assert float(found.mean()) == pytest.approx(float(own.mean()), abs=4 * doubt)
    assert doubt < 0.03 * float(found.mean())


@pytest.mark.parametrize("name", ["vp", "subvp", "karras", "straight"])
def test_the_gap_of_a_normal(name):
    """T1.4: with the exact belief, E[bound] - E[-log p] is known, and vanishes.

    The decoder N(x / alpha, c^2) and the true N(E[x_0 | x], s^2 c^2 / (s^2 + c^2)),
    c = sigma / alpha at the floor, differ by KL = log(1 + c^2 / s^2) / 2 on average;
    the prior and the true p_1 by KL(N(alpha m, v_1) | N(0, sigma_1^2)).
    """
    process = gaussian(name)
    data = NormalData(process, S2, M)
    x0 = M + math.sqrt(S2) * rows(20_000).normal((20_000, 1)).double()
    for floor in (process.span[0], 0.5):
        values = elbo(n=20_000, times=16, floor=floor)(
            Stub(data, x0, batch=20_000)
        ).values
        end, c2 = process.end, 1 / snr(process, floor)
        v = float(data.variance(number(process.span[1])) / end.sigma**2)
        mean = float((end.alpha * M / end.sigma) ** 2)
        gap = (math.log1p(c2 / S2) + v + mean - 1 - math.log(v)) / 2
        entropy = math.log(2 * math.pi * math.e * S2) / 2
        doubt = values["nll_nats_se"]
        assert values["nll_nats"] == pytest.approx(entropy + gap, abs=4 * doubt)
        assert doubt < 0.03 and gap > 0
    assert math.log1p(1 / snr(process, process.span[0]) / S2) / 2 < 3e-4


def test_levels_are_decoded_by_a_softmax():
    """-log P(x_0 | x): no doubt under little noise, log(levels) under endless noise."""
    levels, width = 5, 0.5
    x0 = torch.tensor([[-1.0, 0.5], [0.0, 1.0]]).double()
    near = decoded(x0, x0 + 0.01, width, levels, 0.02)
    torch.testing.assert_close(near, torch.zeros(2).double(), rtol=0, atol=1e-12)
    far = decoded(x0, x0 + 1.0, width, levels, 1e4)
    torch.testing.assert_close(far, torch.full((2,), 2 * math.log(5)).double())
    logits = -((0.3 - torch.linspace(-1, 1, 5)) / 0.4).square() / 2
    found = decoded(x0[:1, 1:], torch.full((1, 1), 0.3).double(), width, levels, 0.4)
    assert float(found) == pytest.approx(float(-logits.log_softmax(0)[3]), rel=1e-6)


@pytest.mark.parametrize("name", ["vp", "karras"])
def test_the_bound_on_levels_is_their_entropy(name):
    """T1.4 for discrete data: exact beliefs in five equal levels lose nothing."""
    process, points = gaussian(name), torch.linspace(-1, 1, 5).double()[:, None]
    x0 = points[rows(8000).integers(5, (8000,))]
    subject = Stub(
        Mixture(process, torch.ones(5), points, 0.0),
        x0,
        spec=Spec((1,), codec={"levels": 5}),
        batch=8000,
    )
    values = elbo(n=8000, floor=process.span[0])(subject).values
    doubt = values["bits_per_dim_se"]
    assert values["bits_per_dim"] == pytest.approx(math.log2(5), abs=4 * doubt)
    assert doubt < 0.025
    total = sum(values[f"{k}_nats"] for k in ("prior", "diffusion", "reconstruction"))
    assert values["nll_nats"] == pytest.approx(total)
    # at a large floor the decoder has work to do, and the bound stays one
    found = elbo(n=8000, floor=0.5)(subject).values
    assert found["reconstruction_nats"] > 0.1
    assert found["bits_per_dim"] > math.log2(5) - 4 * found["bits_per_dim_se"]


def test_a_belief_without_knowledge_pays():
    process = gaussian("karras")
    x0 = 2 * rows(500).integers(256, (500, 4)).double() / 255 - 1
    spec = Spec((4,), codec={"levels": 256})
    data = NormalData(process, float(x0.var()))
    values = elbo(n=500, floor=process.span[0])(
        Stub(data, x0, spec=spec, batch=500)
    ).values
    over = values["bits_per_dim"] - 8
    assert 4 * values["bits_per_dim_se"] < over < 1
