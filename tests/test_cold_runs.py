"""Cold runs: reading, loss, exact resume, and what goes with what."""

from pathlib import Path

import pytest
import torch
from choices import node, options
from degraded import SPEC, UNIFORM, N, fitted, images
from oracles import rows
from tiny import interrupted, outcome, place, tiny
from torch import nn

from diffusion_cli import assemble, checkpoint, config
from diffusion_cli.commands import train
from diffusion_cli.couplings import couplings
from diffusion_cli.datasets import datasets
from diffusion_cli.denoiser import Model
from diffusion_cli.errors import ConfigError
from diffusion_cli.networks import Network
from diffusion_cli.objectives import objectives
from diffusion_cli.parametrisations import parametrisations
from diffusion_cli.place import trained
from diffusion_cli.rng import Rng

__all__ = ["place"]  # a fixture

Digits = datasets["digits"]


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
