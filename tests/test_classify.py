"""A classifier that knows noise, trained by the tool itself."""

import pytest
import torch
from contexts import Stub
from labelled import Labelled
from oracles import gaussian, number, rows
from tiny import tiny

from diffusion_cli import assemble
from diffusion_cli.core import Spec
from diffusion_cli.denoiser import Model
from diffusion_cli.errors import ConfigError
from diffusion_cli.guidance import guidances
from diffusion_cli.networks import networks
from diffusion_cli.objectives import objectives
from diffusion_cli.parametrisations import parametrisations

CLASSES = parametrisations.build({"name": "classes"})
MEANS = torch.tensor([[1.0, 0.5], [-0.5, 1.0], [0.0, -1.0]])
WEIGHTS = torch.full((3,), 1 / 3)
NODE = {"name": "classify", "time": {"name": "uniform"}}


MLP = {"name": "mlp", "width": 32, "depth": 1, "fourier": 1}


def classifier(schedule="vp", shape=(2,), node=MLP):
    state = Spec(shape, classes=3)
    torch.manual_seed(0)
    network = networks.build(node, state=state, out=CLASSES.out(state))
    return Model(gaussian(schedule), network, CLASSES, state)


def test_the_loss_is_the_cross_entropy_and_the_label_is_not_told():
    model, x0, label = classifier(), MEANS.repeat(4, 1), torch.arange(12) % 3
    seen = {}
    model.network.register_forward_pre_hook(
        lambda n, args, kwargs: seen.update(kwargs), with_kwargs=True
    )
    objective = objectives.build(NODE)
    losses = objective(model, x0, rows(12), label=label)
    assert "label" not in seen and losses.shape == (12,)
    assert losses.dtype == torch.float32 and objective.times.shape == (12,)
    torch.testing.assert_close(losses, torch.full((12,), 3.0).log())  # it starts at 0
    q = model(x0, number(0.5))
    logits = rows(12).normal((12, 1, 3))
    q.logits = logits
    expected = torch.nn.functional.cross_entropy(logits[:, 0], label, reduction="none")
    torch.testing.assert_close(q.nll(label[:, None]).squeeze(1), expected)


@pytest.mark.parametrize("schedule", ["vp", "straight", "linear"])
def test_its_inputs_depend_on_the_noise_level_alone(schedule):
    here, there = gaussian("karras"), gaussian(schedule)
    t = number(0.4)
    k = there.schedule(t)
    same = here.schedule.time(k.sigma / k.alpha)
    x = rows(4).normal((4, 2)).double()
    a, b = here.schedule(same), there.schedule(t)
    one = CLASSES.inputs(a.alpha * x, same, here)
    two = CLASSES.inputs(b.alpha * x, t, there)
    for left, right in zip(one, two, strict=True):
        torch.testing.assert_close(left, right)
    with pytest.raises(ConfigError, match="needs data with labels"):
        CLASSES.out(Spec((2,)))


@pytest.mark.parametrize(
    "node",
    [
        {"name": "mlp", "width": 16, "depth": 1},
        {"name": "unet", "channels": 8, "multipliers": (1, 2), "blocks": 1},
        {"name": "dit", "patch": 4, "depth": 1, "width": 16, "heads": 2},
    ],
    ids=lambda node: node["name"],
)
def test_every_network_can_tell_classes(node):
    model = classifier("karras", (1, 8, 8), node)
    q = model(rows(4).normal((4, 1, 8, 8)), number(0.3))
    assert q.logits.shape == (4, 1, 3)


def test_a_trained_one_nears_the_exact_posterior_and_its_gradient_guides():
    """Cross-entropy within 0.03 nats of the exact classifier's, on fresh data."""
    model, objective = (
        classifier("karras"),
        objectives.build(
            {"name": "classify", "time": {"name": "lognormal", "mean": -0.5}}
        ),
    )
    exact = Labelled(model.process, MEANS, WEIGHTS, 0.04)
    optimizer = torch.optim.Adam(model.network.parameters(), 1e-2)

    def data(step):
        label = rows(256, step).integers(3, (256,))
        return MEANS[label] + 0.2 * rows(256, step).normal((256, 2)), label

    for step in range(100):
        x0, label = data(step)
        optimizer.zero_grad()
        objective(model, x0, rows(256, step), label=label).mean().backward()
        optimizer.step()
    x0, label = data(1000)
    model.requires_grad_(False)
    found = objective(model, x0, rows(256, 1000), label=label).mean()
    noise = model.process.noise(x0, rows(256, 1000).child("corruption"))
    x = model.process.corrupt(x0, objective.times, noise)
    ideal = -exact.logits(x, objective.times).log_softmax(1)
    ideal = ideal.gather(1, label[:, None]).mean()
    assert float(ideal) < float(found) < float(ideal) + 0.03
    guided = guidances.build(
        {"name": "classifier", "run": "r"}, denoiser=exact, context=Stub({"r": model})
    )
    t, none = model.process.schedule.time(number(0.7)), torch.full((256,), -1)
    x = model.process.corrupt(x0, t, noise)
    push = guided(x, t, label=label).mean - exact(x, t, label=label).mean
    wanted = exact(x, t, label=label).mean - exact(x, t, label=none).mean
    cosine = (push * wanted).sum() / (push.norm() * wanted.norm())
    assert float(cosine) > 0.9


def test_parts_of_a_classifier_fit_only_together():
    parts = {"objective": NODE, "parametrisation": {"name": "classes"}}
    toy = {"dataset": {"name": "toy2d", "shape": "moons", "size": 8, "labels": True}}
    values = tiny(**toy, **parts)
    built = assemble.parts(values, assemble.spec_of(values))
    assert not built.draws
    for role, node in parts.items():
        values = tiny(**toy, **{role: node})
        with pytest.raises(ConfigError, match="teaches the"):
            assemble.parts(values, assemble.spec_of(values))
