"""One step to the end of a trajectory: consistency training, and its sampler."""

import pytest
import torch
from oracles import NormalData, gaussian, number, rows
from tiny import Setup, snapshot, tiny
from torch import nn

from diffusion_cli import assemble
from diffusion_cli.core import Point, Spec
from diffusion_cli.couplings import couplings
from diffusion_cli.denoiser import Denoiser, Model
from diffusion_cli.errors import ConfigError
from diffusion_cli.networks import networks
from diffusion_cli.objectives import objectives
from diffusion_cli.parametrisations import parametrisations
from diffusion_cli.processes import processes
from diffusion_cli.samplers import samplers

S2, M = 0.25, 0.4
KARRAS = {"name": "karras", "sigma_min": 0.002, "sigma_max": 80.0}
PROCESSES = {
    "karras": {"name": "gaussian", "schedule": KARRAS},
    "straight": {"name": "gaussian", "schedule": {"name": "straight"}},
    "vp": {"name": "gaussian", "schedule": {"name": "vp"}},
    "student": {"name": "electrostatic", "D": 3.0, "schedule": KARRAS},
    "bent": {"name": "radial", "law": {"name": "steepening"}, "schedule": KARRAS},
}


def build(time=None, **own):
    node = {"name": "consistency", "weight": {"name": "x0"}, **own}
    node["time"] = time or {"name": "uniform"}
    return objectives.build(node, coupling=couplings.build({"name": "independent"}))


class Ends(Denoiser):
    """The exact end of the trajectory through x_t for data N(m, s2), and more.

    f = m + sqrt(s2 / v_t) (x - alpha m) + theta sin(x),   v_t the variance of x_t
    """

    def __init__(self, process):
        super().__init__()
        self.data = NormalData(process, S2, M)
        self.process, self.theta = process, nn.Parameter(torch.zeros(()).double())

    def forward(self, x, t, **cond):
        k = self.process.at(t, x)
        ratio = (S2 / (k.alpha**2 * S2 + k.sigma**2)) ** 0.5
        return Point(M + ratio * (x - k.alpha * M) + self.theta * x.sin())


class Means(Ends):
    """The same, but of the belief that denoising teaches."""

    def forward(self, x, t, **cond):
        return Point(self.data(x, t).mean + self.theta * x.sin())


def network(process, reading="edm"):
    """A small perceptron in float64."""
    torch.manual_seed(0)
    spec = Spec((2,))
    node = {"name": "mlp", "width": 12, "depth": 1, "fourier": 1}
    net = networks.build(node, state=spec, out=(2,)).double()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3)
    part = parametrisations.build({"name": reading})
    return Model(processes.build(PROCESSES[process]), net, part, spec)


def test_the_gap_closes_by_halves_and_stays():
    objective = build(first=0.5, halving=100, least=0.03)
    gaps = [objective.gap(step) for step in (0, 100, 250, 401, 10**9)]
    assert gaps == pytest.approx([0.5, 0.25, 0.5 * 2**-2.5, 0.5 * 2**-4.01, 0.03])


@pytest.mark.parametrize("name", ["karras", "straight", "vp", "student"])
def test_a_gap_of_one_is_denoising(name):
    """On straight rays the target is x_0 itself: the same losses by the same draws."""
    model, x0 = network(name), rows(9).normal((9, 2)).double()
    node = {"name": "denoise", "weight": {"name": "x0"}, "time": {"name": "uniform"}}
    independent = couplings.build({"name": "independent"})
    denoise = objectives.build(node, coupling=independent)
    losses = build()(model, x0, rows(9, 1))
    assert torch.equal(losses, denoise(model, x0, rows(9, 1)).float())
    later = build(halving=1)(model, x0, rows(9, 1).at(2))  # a gap of 1/4
    apart = later - denoise(model, x0, rows(9, 1).at(2))
    assert float(apart.detach().abs().median()) > 1e-3


@pytest.mark.parametrize("name", PROCESSES)
def test_the_target_lies_on_the_path_of_the_sample(name):
    """f(x_s, s) of the same x_0 and noise, s = t (1 - gap); x_0 before the floor."""
    model, x0 = network(name), rows(4).normal((4, 2)).double()
    process, low = model.process, model.process.span[0]
    noise = process.noise(x0, rows(4, 1))
    t = torch.tensor([1.0, 0.7, low * 1.4, low * 1.1]).double()
    objective = build(first=0.2)
    target = objective.target(model, x0, noise, t, 0, {})
    s = 0.8 * t
    end = model(process.corrupt(x0, s, noise), s).mean.detach()
    torch.testing.assert_close(target[:3], end[:3])
    assert torch.equal(target[3], x0[3]) and not target.requires_grad


@pytest.mark.parametrize("name", ["karras", "straight", "vp"])
def test_ends_of_trajectories_are_at_rest_and_means_are_not(name):
    """FIX-G: at exact ends the gradient vanishes with the gap; at means it stays."""
    n, process = 100_000, gaussian(name)
    time = {"name": "lognormal", "mean": -0.5, "std": 0.3}
    x0 = M + S2**0.5 * rows(n).normal((n, 1), torch.float64)

    def gradient(model, gap):
        objective = build(time, first=gap, least=gap)
        losses = objective(model, x0, rows(n, 1))
        return float(torch.autograd.grad(losses.mean(), model.theta)[0]) / gap

    ends, means = Ends(process), Means(process)
    wide, near = gradient(ends, 0.02), gradient(ends, 0.005)
    moving = gradient(means, 0.005)
    assert abs(near) < 0.2 * abs(moving)
    assert abs(near) < abs(wide)


def test_the_robust_loss_is_the_plain_one_over_its_own_size():
    model = network("straight")
    x0 = rows(50).normal((50, 2)).double()
    plain, robust, half = (
        build(power=p, softening=1e-3)(model, x0, rows(50, 1)) for p in (0, 1, 0.5)
    )
    torch.testing.assert_close(robust, plain / (plain + 1e-3))
    torch.testing.assert_close(half, plain / (plain + 1e-3).sqrt())
    own = [
        torch.autograd.grad(losses[0], model.network.last.weight, retain_graph=True)[0]
        for losses in (plain, robust)
    ]
    torch.testing.assert_close(own[1], own[0] / (plain[0] + 1e-3).detach())


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("name", ["karras", "straight", "vp"])
def test_restarts_keep_the_law_of_exact_ends(name, steps):
    """Noise is added anew at every level, so any number of steps ends at N(m, s2)."""
    n, process = 20_000, gaussian(name)
    data = Ends(process)
    v = data.data.variance(number(1.0))
    alpha = process.schedule(number(1.0)).alpha
    x = alpha * M + v.sqrt() * rows(n).normal((n, 1), torch.float64)
    node = {"name": "restart", "steps": steps, "grid": {"name": "uniform"}}
    sampler = samplers.build(node)
    assert sampler.calls(steps) == steps and sampler.noisy
    states = list(sampler.trajectory(data, x, rows(n, 1)))
    end = states[-1][:, 0]
    assert len(states) == steps
    assert float(end.mean()) == pytest.approx(M, abs=5 * (S2 / n) ** 0.5)
    assert float(end.var()) == pytest.approx(S2, rel=5 * (2 / n) ** 0.5)
    if steps == 1:
        assert torch.equal(states[0], data(x, number(1.0)).mean)
    else:
        times = sampler.grid(process, steps)
        start = data(x, times[0]).mean
        k = process.schedule(times[1])
        fresh = (states[0] - k.alpha * start) / k.sigma
        assert abs(float((fresh * x).mean().detach())) < 5 * float(x.std()) / n**0.5
        assert float(fresh.detach().var()) == pytest.approx(1, rel=5 * (2 / n) ** 0.5)


def test_noise_of_a_restart_is_of_the_process_and_of_its_step():
    process = processes.build(PROCESSES["student"])
    data, x = Ends(process), torch.ones(4, 1, dtype=torch.float64)
    node = {"name": "restart", "steps": 3, "grid": {"name": "uniform"}}
    states = list(samplers.build(node).trajectory(data, x, rows(4)))
    times = samplers.build(node).grid(process, 3)
    before = x
    for i, state in enumerate(states[:2]):
        noise = process.noise(x, rows(4).at(i).child("restart"))
        end = data(before, times[i]).mean
        expected = process.corrupt(end, times[i + 1], noise)
        torch.testing.assert_close(state, expected)
        before = state


IMAGES = {
    "dataset": {"name": "digits", "labels": False},
    "process": PROCESSES["straight"],
    "parametrisation": {"name": "velocity"},
    "network": {"name": "dit", "depth": 1, "width": 8, "heads": 2, "patch": 4},
    "objective": {
        "name": "consistency",
        "weight": {"name": "velocity"},
        "time": {"name": "uniform"},
    },
    "sampler": {"name": "restart", "grid": {"name": "uniform"}},
}


def test_training_does_not_depend_on_the_micro_batches():
    one, other = (
        snapshot(Setup(parts=IMAGES, micro_batch=size).train(3)) for size in (8, 2)
    )
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-3, atol=1e-4)


def test_a_net_learns_the_ends():
    """One step of a small net, trained without a teacher, is m + s x_1."""
    torch.manual_seed(1)
    spec = Spec((1,))
    net = networks.build(
        {"name": "mlp", "width": 32, "depth": 1, "fourier": 0}, state=spec, out=(1,)
    )
    reading = parametrisations.build({"name": "velocity"})
    model = Model(gaussian("straight"), net, reading, spec)
    objective = build(weight={"name": "velocity"}, halving=70)
    adam, steps = torch.optim.Adam(net.parameters(), lr=1e-2), 450
    for step in range(steps):
        adam.param_groups[0]["lr"] = 1e-2 * (1 - step / steps)
        rng = rows(256).at(step)
        x0 = M + S2**0.5 * rng.child("data").normal((256, 1))
        adam.zero_grad()
        objective(model, x0, rng).mean().backward()
        adam.step()
    x = torch.linspace(-2, 2, 9)[:, None]
    with torch.no_grad():
        end = model(x, number(1.0)).mean
    torch.testing.assert_close(end, M + S2**0.5 * x, rtol=0, atol=0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parametrisation": {"name": "x0"}}, "`consistency` needs a belief that is x"),
        ({"parametrisation": {"name": "v"}}, ""),
        ({"parametrisation": {"name": "edm"}}, ""),
        ({"parametrisation": {"name": "eps"}, "process": PROCESSES["vp"]}, ""),
        (
            {"parametrisation": {"name": "field"}, "process": PROCESSES["student"]},
            "`consistency` needs a belief that is x",
        ),
        ({"process": {"name": "jump"}}, "needs an affine process"),
        ({"objective": IMAGES["objective"] | {"first": 0.0}}, "first: must be in"),
        ({"objective": IMAGES["objective"] | {"least": 1.5}}, "least: must be in"),
    ],
)
def test_a_belief_has_to_begin_at_its_state(changes, message):
    spec = Spec((1, 8, 8))
    if not message:
        assemble.parts(tiny(**IMAGES | changes), spec)
        return
    with pytest.raises(ConfigError) as caught:
        assemble.parts(tiny(**IMAGES | changes), spec)
    assert message in caught.value.render()
