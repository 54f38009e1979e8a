"""PFGM's own training: the field, the big batch, and what both promise (T8, G15)."""

import pytest
import torch
from charges import Charges, electrostatic
from oracles import number, rows
from tiny import Setup, snapshot

from diffusion_cli import assemble
from diffusion_cli.core import Spec
from diffusion_cli.errors import ConfigError
from diffusion_cli.objectives import objectives
from diffusion_cli.parametrisations import parametrisations

KARRAS = {"name": "karras", "sigma_min": 0.001, "sigma_max": 40.0}
FIELD = {"name": "field"}
BATCH = {"name": "poisson_batch", "reference": 64}
PARTS = {
    "process": {"name": "electrostatic", "D": 1.0, "schedule": KARRAS},
    "parametrisation": FIELD,
    "objective": BATCH,
    "sampler": {"name": "euler", "grid": {"name": "log_sigma"}},
    "network": {"name": "mlp", "width": 16, "depth": 1},
}


def exact(field, mean, x, t, process, d):
    """The output that stands for a belief, by the equation of the docstring."""
    k = process.schedule(t)
    y, z = x / k.alpha, k.sigma / k.alpha
    gap = torch.cat(((y - mean).flatten(1), z.expand(len(x), 1)), 1)
    out = -(d**0.5) * gap / (gap.norm(dim=1, keepdim=True) + field.gamma)
    last = out[:, -1:].reshape(-1, 1, *[1] * (x.ndim - 2)).expand(-1, 1, *x.shape[2:])
    return torch.cat((out[:, :-1].reshape(x.shape), last), 1)


@pytest.mark.parametrize("shape", [(2,), (3, 4, 4)])
@pytest.mark.parametrize("z", [0.01, 0.7, 4.0, 12.0, 40.0])
def test_a_field_and_its_belief_are_one(shape, z):
    """T8.3 as a reading: F of a belief gives that belief back, on both sides of 5."""
    process, field = electrostatic(1.0), parametrisations.build(FIELD)
    d, t = Spec(shape).numel, process.schedule.time(number(z))
    mean = rows(4).normal((4, *shape)).double()
    x = mean + z * rows(4, 1).normal((4, *shape)).double()
    out = exact(field, mean, x, t, process, d)
    assert out.shape[1:] == field.out(Spec(shape))
    got = field.posterior(out, x, t, process).mean
    torch.testing.assert_close(got, mean, rtol=1e-6, atol=1e-6 * z)
    errors = field.errors(out, mean, x, t, process)
    torch.testing.assert_close(errors, torch.zeros_like(errors))
    assert float(field.errors(1.1 * out, mean, x, t, process).min()) > 0
    start = field.posterior(torch.zeros_like(out), x, t, process)
    assert bool(start.mean.isfinite().all())  # a network begins at zero


def test_the_hyper_rule():
    """G15."""
    from importlib import import_module

    reach = import_module("diffusion_cli.objectives.poisson_batch").reach
    found = reach(norm=32, d=3072, spread=0.01, tau=0.03)
    assert found.M == 291
    assert found.z == pytest.approx(43.408, rel=1e-5)
    assert found.distance == pytest.approx(3015.39, rel=1e-5)


@pytest.mark.parametrize("D", [1.0, 4.0])
def test_the_field_of_a_big_batch_is_that_of_its_charges(D):
    """The target's posterior mean is FIX-E's, with x_0 among the charges."""
    process, objective = electrostatic(D), objectives.build(BATCH)
    own, others = rows(3).normal((3, 2)).double(), rows(5, 1).normal((5, 2)).double()
    y, z = 2 * rows(3, 2).normal((3, 2)).double(), number(0.6)
    mates = torch.tensor([[1, 1, 1, 1, 1], [1, 0, 1, 0, 1], [0] * 5]).bool()
    got = objective.mean(process, y, z.expand(3, 1), own, others, mates)
    t = process.schedule.time(z)
    for i in range(3):
        points = torch.cat((own[i : i + 1], others[mates[i]]))
        expected = Charges(process, points)(y[i : i + 1], t).mean[0]
        torch.testing.assert_close(got[i], expected)
    torch.testing.assert_close(got[2], own[2])


def test_states_of_the_interior_have_the_ratio_of_the_process():
    """|y - x_0| / z near z = 1/2 is that of Student-t noise: median 3.99 for d = 8."""
    process, objective = electrostatic(1.0, KARRAS), objectives.build(BATCH)
    x0 = torch.zeros(200_000, 8).double()
    t, y = objective.states(process, x0, rows(200_000))
    z = process.schedule(t).sigma
    inside = (z > 0.4) & (z < 0.6)
    ratio = (y.norm(dim=1) / z)[inside]
    exact = process.noise(x0, rows(200_000, 1)).norm(dim=1)
    assert float(exact.median()) == pytest.approx(3.99, rel=0.02)
    assert float(ratio.median()) == pytest.approx(3.99, rel=0.05)
    assert float(z.max()) <= 40 * (1 + 1e-9)


def test_training_does_not_depend_on_the_micro_batches():
    runs = [Setup(parts=PARTS, micro_batch=size).train(3) for size in (8, 2)]
    one, other = (snapshot(state) for state in runs)
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-3, atol=1e-4)


def values(**changes):
    from tiny import tiny

    return tiny(**PARTS | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parametrisation": {"name": "edm"}}, "trains a field, which only field"),
        (
            {"process": {"name": "gaussian", "schedule": KARRAS}},
            "needs a process of charges",
        ),
        (
            {
                "process": {
                    "name": "electrostatic",
                    "schedule": {"name": "straight"},
                }
            },
            "is undefined at t = 1",
        ),
        (
            {"sampler": {"name": "heun", "churn": 1.0, "grid": {"name": "rho"}}},
            "needs a process with Gaussian noise",
        ),
        (
            {"sampler": {"name": "ancestral", "eta": 0.5, "grid": {"name": "rho"}}},
            "eta: must be 0: only Gaussian noise has reverse steps that draw",
        ),
        (
            {
                "sampler": {
                    "name": "annealed_langevin",
                    "grid": {"name": "log_sigma"},
                }
            },
            "needs a process with Gaussian noise",
        ),
    ],
)
def test_what_cannot_go_with_it_is_refused(changes, message):
    with pytest.raises(ConfigError) as caught:
        assemble.parts(values(**changes), Spec((2,)))
    assert message in caught.value.render()
