"""Every reading gives the exact x_0 for the exact target, on every path (T1.1, T11)."""

import pytest
import torch
from choices import node
from oracles import SCHEDULES, gaussian, number, rows

from diffusion_cli.core import Spec
from diffusion_cli.objectives import weights
from diffusion_cli.parametrisations import parametrisations
from diffusion_cli.processes.affine import Affine, Diffusion

FAMILY = (Affine, Diffusion)
T = torch.tensor([0.25, 0.4, 0.6, 0.95], dtype=torch.float64)


def needed(name):
    return parametrisations[name].needs


def path(name):
    process = gaussian(name)
    x0, noise = rows(4).normal((4, 3)).double(), rows(4, 1).normal((4, 3)).double()
    return process, x0, noise, process.corrupt(x0, T, noise), process.at(T, x0)


def targets(x0, n, x, k):
    """What F must be for the belief to be x_0; a row per reading, section 0.3."""
    radius = (k.alpha**2 + k.sigma**2).sqrt()
    spread = ((k.alpha / 2) ** 2 + k.sigma**2).sqrt()
    return {
        "eps": n,
        "x0": x0,
        "v": (k.alpha * n - k.sigma * x0) / radius,
        "velocity": k.dalpha * x0 + k.dsigma * n,
        "score": -n,
        # EDM: (x_0 - c_skip x) / c_out, with data_std 1/2
        "edm": (x0 - k.alpha / 4 * x / spread**2) / (k.sigma / 2 / spread),
    }


def test_every_affine_reading_has_a_target():
    known = set(targets(*[torch.ones(1)] * 3, gaussian("vp").schedule(T)))
    affine = {
        n
        for n in parametrisations.names()
        if parametrisations[n].needs in FAMILY and parametrisations[n].about == "x0"
    }
    assert {
        n for n in affine if not (parametrisations[n].second or parametrisations[n].own)
    } == known


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", ["eps", "x0", "v", "velocity", "score", "edm"])
def test_the_exact_target_gives_the_exact_sample(name, schedule):
    process, x0, noise, x, k = path(schedule)
    reading = parametrisations.build({"name": name})
    target = targets(x0, noise, x, k)[name]
    q = reading.posterior(target, x, T, process)
    torch.testing.assert_close(q.mean, x0, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_errors_convert_as_their_weights_say(schedule):
    """Section 0.3: |F - target|^2 = w(t) |x_0 - E[x_0]|^2 for each target's weight."""
    process, x0, noise, x, k = path(schedule)
    pairs = {"eps": "simple", "velocity": "velocity", "v": "snr_plus_one", "x0": "x0"}
    pairs |= {"score": "simple", "edm": "edm"}
    for reading, weight in pairs.items():
        part = parametrisations.build({"name": reading})
        target = targets(x0, noise, x, k)[reading]
        out = target + rows(4, 2).normal((4, 3)).double()
        nll = part.posterior(out, x, T, process).nll(x0)
        w = weights.build({"name": weight})(process, T)
        torch.testing.assert_close(
            w[:, None] * nll, (out - target).square(), rtol=1e-6, atol=1e-9
        )


@pytest.mark.parametrize("schedule", ["karras", "vp", "straight", "ve"])
def test_edm_inputs_and_targets_have_unit_variance(schedule):
    """T11.1: for data of variance data_std^2, at every noise level."""
    process, n = gaussian(schedule), 200_000
    reading = parametrisations.build({"name": "edm", "data_std": 0.5})
    x0 = rows(n).normal((n, 1)).double() / 2
    noise = rows(n, 1).normal((n, 1)).double()
    for t in map(number, (0.3, 0.6, 0.9)):
        x, k = process.corrupt(x0, t, noise), process.schedule(t)
        seen, _ = reading.inputs(x, t, process)
        target = targets(x0, noise, x, k)["edm"]
        assert float(seen.var()) == pytest.approx(1, abs=4 * (2 / n) ** 0.5)
        assert float(target.var()) == pytest.approx(1, abs=4 * (2 / n) ** 0.5)


def test_edm_reads_like_its_table():
    """T11.2: c_skip, c_out, c_in, c_noise of Karras et al. 2022, table 1."""
    process, _, _, x, k = path("karras")
    reading = parametrisations.build({"name": "edm"})
    sigma, out = k.sigma, rows(4, 3).normal((4, 3)).double()
    skip = 0.25 / (sigma**2 + 0.25)
    scale = sigma * 0.5 / (sigma**2 + 0.25).sqrt()
    torch.testing.assert_close(
        reading.posterior(out, x, T, process).mean, skip * x + scale * out
    )
    seen, level = reading.inputs(x, T, process)
    torch.testing.assert_close(seen, x / (sigma**2 + 0.25).sqrt())
    torch.testing.assert_close(level, sigma[:, 0].log() / 4)


def test_v_is_edm_with_unit_data_up_to_sign():
    process, _, _, x, _ = path("vp")
    out = rows(4, 3).normal((4, 3)).double()
    v = parametrisations.build({"name": "v"}).posterior(-out, x, T, process)
    edm = parametrisations.build({"name": "edm", "data_std": 1.0})
    torch.testing.assert_close(v.mean, edm.posterior(out, x, T, process).mean)


NUMBERS = [n for n in parametrisations.names() if issubclass(Diffusion, needed(n))]


@pytest.mark.parametrize("name", NUMBERS)
def test_a_reading_is_finite_at_both_ends_or_says_why_not(name):
    for schedule in SCHEDULES:
        process = gaussian(schedule)
        reading = parametrisations.build(node("parametrisation", name))
        if reading.fits(process):
            assert not process.bounded
            continue
        for t in process.span:
            x = rows(2).normal((2, 3))
            seen, level = reading.inputs(x, number(t), process)
            out = rows(2).normal((2, *reading.out(Spec((3,), classes=3))))
            mean = reading.posterior(out, x, number(t), process).mean
            assert seen.isfinite().all() and mean.isfinite().all()
            assert level.isfinite().all() and abs(float(level)) < 3
            assert seen.dtype == mean.dtype == torch.float32
