"""The idempotent generator: where gradients go, and when it degenerates (T14)."""

import copy

import pytest
import torch
from oracles import rows
from tiny import CPU, Setup, snapshot, tiny
from torch import nn

from diffusion_cli import assemble
from diffusion_cli.core import Spec
from diffusion_cli.denoiser import Model
from diffusion_cli.errors import ConfigError
from diffusion_cli.networks import Network
from diffusion_cli.objectives import objectives
from diffusion_cli.parametrisations import parametrisations
from diffusion_cli.processes import processes
from diffusion_cli.samplers import samplers

PLAIN = {"name": "idempotent", "limit": 0.0, "distance": "l2"}
PARTS = {
    "process": {"name": "jump"},
    "parametrisation": {"name": "direct"},
    "objective": {"name": "idempotent"},
    "sampler": {"name": "ancestral", "steps": 1, "grid": {"name": "uniform"}},
    "network": {"name": "mlp", "width": 16, "depth": 1},
}


class Linear(Network):
    """f(x) = A x, with A a number or a matrix."""

    def __init__(self, gain):
        super().__init__()
        self.gain = nn.Parameter(torch.as_tensor(gain, dtype=torch.float64))

    def forward(self, x, level, label=None, extra=None):
        return self.gain * x if self.gain.ndim == 0 else x @ self.gain.T


def model(gain, size=2):
    reading, spec = parametrisations.build({"name": "direct"}), Spec((size,))
    return Model(processes.build({"name": "jump"}), Linear(gain), reading, spec)


def gradient(term, net):
    return torch.autograd.grad(term.sum(), net.network.gain, retain_graph=True)[0]


@pytest.mark.parametrize("a", [0.3, 0.9, 1.4])
def test_gradients_take_their_routes(a):
    """T14.1, for f = a y: d again = 2 (a-1)^2 a z^2, d tight = -2 (a-1) a^2 z^2."""
    net, objective = model(a, 1), objectives.build(PLAIN)
    x, z = rows(1).normal((1, 1)).double(), rows(1, 1).normal((1, 1)).double()
    terms = objective.terms(net, objective.frozen(net, 0), x, z, {})
    square = float(z.square())
    got = float(gradient(terms.again, net))
    assert got == pytest.approx(2 * (a - 1) ** 2 * a * square)
    got = float(gradient(terms.tight, net))
    assert got == pytest.approx(-2 * (a - 1) * a**2 * square)
    got = float(gradient(terms.kept, net))
    assert got == pytest.approx(2 * (a - 1) * float(x.square()))
    swapped = objective.terms(objective.frozen(net, 0), net, x, z, {})  # f' inside
    assert float(gradient(swapped.again, net)) != pytest.approx(
        2 * (a - 1) ** 2 * a * square
    )


def test_a_projection_on_the_data_is_a_fixed_point():
    """T14.2: P^2 = P with data in its range: nothing to learn, f(f(z)) = f(z)."""
    way = torch.tensor([[0.6], [0.8]], dtype=torch.float64)
    net, objective = model(way @ way.T), objectives.build(PLAIN)
    x, z = rows(9).normal((9, 1)).double() @ way.T, rows(9, 1).normal((9, 2)).double()
    terms = objective.terms(net, objective.frozen(net, 0), x, z, {})
    for term in terms[:3]:
        torch.testing.assert_close(term, torch.zeros_like(term))
    walks = [walk(net, z, steps) for steps in (1, 2)]
    torch.testing.assert_close(walks[0], z @ way @ way.T)
    torch.testing.assert_close(walks[1], walks[0])


def walk(net, x, steps):
    node = {"name": "ancestral", "steps": steps, "grid": {"name": "uniform"}}
    *_, last = samplers.build(node).trajectory(net, x, rows(len(x)))
    return last


def test_two_steps_are_two_passes():
    x = rows(3).normal((3, 2)).double()
    assert torch.equal(walk(model(0.5), x, 1), 0.5 * x)
    assert torch.equal(walk(model(0.5), x, 2), 0.25 * x)


def test_it_is_a_gan_whose_discriminator_shares_the_weights():
    """T14.3: D(y) = |f(y) - y|^2; D learns D(x) - t D(G(z)), G learns D'(G(z))."""
    gain = rows(2).normal((2, 2)).double()
    net, objective = model(gain), objectives.build(PLAIN)
    x, z = rows(5, 1).normal((5, 2)).double(), rows(5, 2).normal((5, 2)).double()
    terms = objective.terms(net, objective.frozen(net, 0), x, z, {})
    loss = objective.kept * terms.kept + objective.again * terms.again
    got = gradient(loss + objective.tight * terms.tight, net)

    generator, judge = (copy.deepcopy(net.network) for _ in range(2))

    def judged(y, weights):
        return (weights(y, None) - y).square().mean(1)

    fake = generator(z, None)
    real = objective.kept * judged(x, judge) - objective.tight * judged(
        fake.detach(), judge
    )
    fixed = copy.deepcopy(judge).requires_grad_(False)
    fool = objective.again * judged(fake, fixed)
    parts = torch.autograd.grad(real.sum(), judge.gain)[0]
    parts = parts + torch.autograd.grad(fool.sum(), generator.gain)[0]
    torch.testing.assert_close(got, parts)


@pytest.mark.parametrize(("gain", "flag"), [(1.0, True), (1.001, True), (0.2, False)])
def test_the_monitor_flags_the_identity(gain, flag):
    """T14.4."""
    net, objective = model(gain), objectives.build({"name": "idempotent"})
    x = rows(8).normal((8, 2)).double()
    for step in range(400):
        rng = rows(8).at(step)
        losses = objective(net, x, rng)
    assert objective.collapsed == flag
    assert losses.shape == (8,) and losses.dtype == torch.float32
    if gain == 1.0:  # the degenerate equilibrium: every loss is 0
        assert float(losses.abs().max()) == 0
    assert "moved" in objective.state_dict()


def test_smoothing_bounds_the_tight_term():
    net, objective = model(3.0), objectives.build({"name": "idempotent"})
    x, z = rows(6).normal((6, 2)).double(), 1e3 * rows(6, 1).normal((6, 2)).double()
    terms = objective.terms(net, objective.frozen(net, 0), x, z, {})
    assert bool((-terms.tight <= 1.5 * terms.kept + 1e-9).all())


def test_the_copy_is_real_and_refreshed_every_step():
    setup = Setup(parts=PARTS)
    setup.train(3)
    state, objective = setup.state, setup.state.objective
    frozen = objective._frozen[0]
    names = dict(frozen.named_parameters())
    gaps = [
        float((p.detach() - names[n]).abs().max())
        for n, p in state.model.named_parameters()
    ]
    assert max(gaps) > 0  # it is of the step before
    now = objective.frozen(state.model, 99)
    assert now is frozen
    for p, q in zip(now.parameters(), state.model.parameters(), strict=True):
        assert torch.equal(p, q) and not p.requires_grad
    assert not list(objective.parameters())
    assert [key for key in snapshot(state) if key.startswith("objective")] == [
        "objective/moved"
    ]


def test_a_restart_changes_nothing():
    whole = Setup(parts=PARTS).train(4)
    half = Setup(parts=PARTS).train(2)
    other = Setup(parts=PARTS)
    kept = {file: dict(tensors) for file, tensors in half.tensors().items()}
    other.state.restore(lambda name: kept[name], half.plain())
    again = other.train(4)
    one, two = snapshot(whole), snapshot(again)
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_what_needs_a_path_is_refused():
    values = tiny(**PARTS | {"sampler": {"name": "euler", "grid": {"name": "uniform"}}})
    with pytest.raises(ConfigError, match="needs a process with a velocity"):
        assemble.parts(values, Spec((2,)))
    assert CPU.type == "cpu"
