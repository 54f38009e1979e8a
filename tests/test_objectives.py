"""Losses, weights and time laws (T1.5, T11.1, T11.6)."""

import pytest
import torch
from oracles import NormalData, gaussian, number, rows
from torch import nn

from diffusion_cli.core import Spec
from diffusion_cli.couplings import couplings
from diffusion_cli.denoiser import Model
from diffusion_cli.errors import ConfigError
from diffusion_cli.networks import Network
from diffusion_cli.objectives import objectives, times, weights
from diffusion_cli.parametrisations import parametrisations

WEIGHTS = weights.names()
TIMES = times.names()


class Scaled(Network):
    """F = gain x: the smallest network that has a parameter."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))

    def forward(self, x, level, label=None, extra=None):
        self.label = label
        return self.gain * x


def model(schedule="karras", reading="edm", gain=0.0):
    part = parametrisations.build({"name": reading})
    return Model(gaussian(schedule), Scaled(gain), part, Spec((2,), classes=3))


def denoise(weight="edm", time="uniform", **own):
    node = {
        "name": "denoise",
        "weight": {"name": weight},
        "time": {"name": time},
        **own,
    }
    return objectives.build(node, coupling=couplings.build({"name": "independent"}))


@pytest.mark.parametrize("time", TIMES)
@pytest.mark.parametrize("weight", WEIGHTS)
def test_losses_are_finite_float32_and_one_per_sample(weight, time):
    for schedule in ("karras", "vp", "linear", "ve", "straight"):
        x0 = rows(64).normal((64, 2)) / 2
        losses = denoise(weight, time)(model(schedule, "v"), x0, rows(64))
        assert losses.shape == (64,) and losses.dtype == torch.float32
        assert losses.isfinite().all()


@pytest.mark.parametrize("schedule", ["karras", "vp", "straight"])
def test_a_zero_network_has_loss_one_under_edm(schedule):
    """T1.5: at every noise level, for data of variance 1/4."""
    x0 = rows(100_000).normal((100_000, 2)) / 2
    law = denoise("edm", "lognormal")
    losses = law(model(schedule), x0, rows(100_000, 5))
    edges = law.times.quantile(torch.tensor([0, 0.25, 0.5, 0.75], dtype=torch.float64))
    part = torch.bucketize(law.times, edges, right=True)
    for quarter in range(1, 5):
        own = losses[part == quarter].detach()
        error = 4 * float(own.std()) / len(own) ** 0.5
        assert float(own.mean()) == pytest.approx(1, abs=error)


@pytest.mark.parametrize("weight", WEIGHTS)
def test_the_ideal_denoiser_beats_any_perturbation_of_itself(weight):
    class Shifted(nn.Module):
        def __init__(self, shift):
            super().__init__()
            self.process, self.shift = gaussian("vp"), shift
            self.data = NormalData(self.process, 0.25)

        def forward(self, x, t, **cond):
            q = self.data(x, t)
            q.mean = q.mean * (1 + self.shift)
            return q

    x0 = rows(20_000).normal((20_000, 1)) / 2
    best, high, low = (
        denoise(weight)(Shifted(shift), x0, rows(20_000, 1)) for shift in (0, 0.5, -0.5)
    )
    for worse in (high, low):
        gap = worse - best  # paired: the same times and noise
        assert float(gap.mean()) > 3 * float(gap.std()) / 20_000**0.5


@pytest.mark.parametrize("time", TIMES)
@pytest.mark.parametrize("stratified", [False, True])
def test_a_micro_batch_draws_the_times_of_its_rows(time, stratified):
    law, process = times.build({"name": time, "stratified": stratified}), gaussian("vp")
    whole = law(process, rows(12))
    parts = [law(process, rows(12).of(part)) for part in torch.arange(12).split(5)]
    assert torch.equal(whole, torch.cat(parts))
    assert whole.dtype == torch.float64
    assert (whole >= process.span[0]).all() and (whole <= process.span[1]).all()


@pytest.mark.parametrize("time", TIMES)
def test_stratified_times_have_the_same_law_and_cover_it_evenly(time):
    process = gaussian("vp")
    plain, even = (
        times.build({"name": time, "stratified": flag})(process, rows(20_000)).sort()[0]
        for flag in (False, True)
    )
    assert float((plain - even).abs().mean()) < 0.02
    few = times.build({"name": time, "stratified": True})
    ranks = torch.searchsorted(even, few(process, rows(64, 9)).sort()[0]) / 20_000
    expected = (torch.arange(64) + 0.5) / 64
    assert float((ranks - expected).abs().max()) < 3 / 64


def test_uniform_times_are_those_a_discrete_process_knows():
    process = gaussian("linear", levels=25)
    drawn = times.build({"name": "uniform"})(process, rows(500)) * 25
    assert drawn.round().unique().tolist() == list(range(1, 26))
    torch.testing.assert_close(drawn, drawn.round())


def test_logit_normal_times_are_log_normal_noise_levels():
    """T11.6: on a straight path, sigma / alpha = exp(logit t)."""
    process = gaussian("straight", floor=1e-9)
    own = {"mean": 0.3, "std": 0.7}
    logit = times.build({"name": "logit_normal", **own})(process, rows(1000))
    lognormal = times.build({"name": "lognormal", **own})(process, rows(1000))
    torch.testing.assert_close(logit, lognormal, rtol=1e-9, atol=0)


def test_labels_are_dropped_per_sample_whatever_the_split():
    net, law = model(), denoise(drop=0.3)
    labels, x0 = torch.arange(1000) % 3, torch.zeros(1000, 2)
    law(net, x0, rows(1000), label=labels)
    kept = net.network.label == labels
    assert (net.network.label[~kept] == -1).all()
    assert float((~kept).double().mean()) == pytest.approx(
        0.3, abs=4 * 0.46 / 1000**0.5
    )
    law(net, x0[:10], rows(1000).of(torch.arange(10)), label=labels[:10])
    assert torch.equal(net.network.label == labels[:10], kept[:10])


def test_min_snr_and_trunc_snr_are_clamps():
    process, t = gaussian("vp"), torch.linspace(0.01, 1, 50, dtype=torch.float64)
    snr = weights.build({"name": "simple"})(process, t)
    low = weights.build({"name": "min_snr", "gamma": 5.0})(process, t)
    high = weights.build({"name": "trunc_snr"})(process, t)
    assert torch.equal(low, snr.clamp(max=5)) and torch.equal(high, snr.clamp(min=1))


def test_the_likelihood_weight_is_half_the_slope_of_snr():
    h = 1e-6
    for name in ("vp", "straight", "karras", "subvp"):
        process, t = gaussian(name), torch.tensor([0.3, 0.5, 0.9], dtype=torch.float64)
        simple = weights.build({"name": "simple"})
        slope = (simple(process, t + h) - simple(process, t - h)) / (2 * h)
        got = weights.build({"name": "likelihood"})(process, t)
        torch.testing.assert_close(got, -slope / 2, rtol=1e-5, atol=1e-9)


def test_the_bound_is_tight_for_the_exact_belief():
    """T1.4: prior KL + integral of the loss + reconstruction = E -log p(x_0).

    For data N(0, s2) the loss is w(t) Var[x_0 | x_t], in closed form.
    """
    s2, process = number(0.25), gaussian("vp")
    data = NormalData(process, s2)
    low, high = process.span
    t = low * (high / low) ** torch.linspace(0, 1, 20_001, dtype=torch.float64)
    k = process.schedule(t)
    loss = weights.build({"name": "likelihood"})(process, t) * s2 * k.sigma**2
    integral = torch.trapezoid(loss / data.variance(t) * t, t.log())
    first, last = k.sigma[0] ** 2 / k.alpha[0] ** 2, process.end
    prior = (last.alpha**2 * s2 + last.sigma**2 - 1 - (last.sigma**2).log()) / 2
    reconstruction = (2 * torch.pi * torch.e * s2 * first / (s2 + first)).log() / 2
    entropy = (2 * torch.pi * torch.e * s2).log() / 2
    bound = prior + integral + reconstruction
    assert float(bound) == pytest.approx(float(entropy), abs=1e-6)


def test_dropout_of_labels_needs_a_probability():
    with pytest.raises(ConfigError, match="drop: must be in"):
        denoise(drop=1.0)
