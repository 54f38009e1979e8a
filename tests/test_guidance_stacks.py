"""What all guidances share: neutral scales, stacks, energies."""

from inspect import signature

import pytest
import torch
from guided import MEANS, WEIGHTS, Counted, guided, mixture, place, states
from labelled import Labelled
from oracles import NormalData, gaussian, number, rows

from diffusion_cli.core import Normal, Point
from diffusion_cli.denoiser import Denoiser
from diffusion_cli.guidance import energies, guidances
from diffusion_cli.guidance.gradients import slope
from diffusion_cli.parametrisations import parametrisations

QUADRATIC = {"name": "quadratic", "mean": 1.0}
MASK = {"name": "mask", "hidden": "half"}
NEUTRAL = {
    "cfg": {"scale": 1.0},
    "auto": {"run": "run", "scale": 1.0},
    "classifier": {"run": "judge", "scale": 0.0},
    "energy": {"energy": QUADRATIC, "scale": 0.0},
    "inverse": {"path": "y", "operator": MASK, "scale": 0.0},
    "clip": {"low": -1e9, "high": 1e9},
    "large": {"data_std": 0.0},
}
STRONG = {
    "cfg": {"scale": 3.0},
    "auto": {"run": "run", "scale": 3.0},
    "classifier": {"run": "judge", "scale": 3.0},
    "energy": {"energy": QUADRATIC, "scale": 3.0},
    "inverse": {"path": "y", "operator": MASK, "noise": 0.1},
    "clip": {"low": -0.1, "high": 0.1},
    "large": {},
}


def whole():
    found = place()
    found.models["run"] = mixture("karras")
    found.models["run"].parametrisation = parametrisations.build({"name": "x0"})
    found.models["run"].s2 = 0.5
    return found


def test_every_guidance_is_swept():
    scaled = {
        n for n in guidances.names() if "scale" in signature(guidances[n]).parameters
    }
    assert scaled <= set(NEUTRAL) == set(STRONG)


@pytest.mark.parametrize("name", NEUTRAL)
def test_a_neutral_scale_is_the_identity_and_a_strong_one_is_not(name):
    data, t, label = mixture(), number(0.4), torch.tensor([0, 1, 2, 0, 1, 2])
    x = states(data.process, t)
    plain = data(x, t, label=label)
    neutral = guided(data, name, whole(), **NEUTRAL[name])(x, t, label=label)
    assert (
        torch.equal(neutral.mean, plain.mean) and not torch.as_tensor(neutral.var).any()
    )
    strong = guided(data, name, whole(), **STRONG[name])(x, t, label=label)
    moved = not torch.allclose(strong.mean, plain.mean, atol=1e-3)
    assert moved or (isinstance(strong, Normal) and bool((strong.var > 0).all()))


@pytest.mark.parametrize("name", STRONG)
@pytest.mark.parametrize("shape", [(), (6,)])
def test_bound_conditions_commute_with_guidance(name, shape):
    data, label = mixture(), torch.tensor([0, 1, 2, 0, 1, 2])
    t = torch.full(shape, 0.4, dtype=torch.float64)
    x, places = states(data.process, 0.4), torch.tensor([5, 4, 3, 2, 1, 0])
    cond = {"label": label, "rows": places}
    free = guided(data, name, whole(), **STRONG[name])(x, t, **cond)
    inside = guided(data.given(**cond), name, whole(), **STRONG[name])
    outside = guided(data, name, whole(), **STRONG[name]).given(**cond)
    torch.testing.assert_close(outside(x, t).mean, free.mean, rtol=0, atol=0)
    with torch.no_grad():  # as samplers call it
        again = guided(data, name, whole(), **STRONG[name])(x, t, **cond)
    torch.testing.assert_close(again.mean, free.mean, rtol=0, atol=0)
    assert not again.mean.requires_grad and inside.process is data.process


def test_a_tilt_survives_what_is_stacked_on_it():
    """Mean form inside: clip and large keep it, cfg moves it as it moves the mean."""
    data, t, label = mixture(), number(0.4), torch.tensor([0, 1, 2, 0, 1, 2])
    x = states(data.process, t)
    tilted = guided(data, "classifier", run="judge", form="mean")
    tilt = tilted(x, t, label=label).tilt
    assert tilted.tilts and tilt.abs().max() > 0.01
    for name, own in (("clip", {}), ("large", {})):
        q = guided(tilted, name, **own)(x, t, label=label)
        assert torch.equal(q.tilt, tilt)
    q = guided(tilted, "cfg", scale=3.0)(x, t, label=label)
    torch.testing.assert_close(q.tilt, 3 * tilt)  # without a label there is none


def test_energies_commute_and_clipping_does_not():
    data, t = mixture(), number(0.4)
    x, label = states(data.process, t), torch.tensor([0, 1, 2, 0, 1, 2])
    one = {"energy": QUADRATIC, "scale": 2.0, "at": "noisy"}
    two = {"energy": {"name": "linear", "slope": 3.0}, "at": "noisy"}
    nodes = {"one": ("energy", one), "two": ("energy", two), "clip": ("clip", {})}

    def stacked(*names):
        denoiser = data
        for name in names:
            kind, own = nodes[name]
            denoiser = guided(denoiser, kind, **own)
        return denoiser(x, t, label=label).mean

    torch.testing.assert_close(stacked("one", "two"), stacked("two", "one"))
    assert stacked("one", "clip").abs().max() <= 1
    assert stacked("clip", "one").abs().max() > 1


def test_gradients_go_through_a_stack_of_gradients():
    """An outer `clean` differentiates an inner one's belief, its push held fixed."""
    data, t = mixture(), number(0.4)
    x, label = states(data.process, t), torch.tensor([0, 1, 2, 0, 1, 2])
    inner = guided(data, "energy", energy=QUADRATIC, scale=0.5)
    outer = guided(inner, "classifier", run="judge", at="clean")
    with torch.no_grad():
        q = outer(x, t, label=label)
    assert q.mean.isfinite().all() and not q.mean.requires_grad
    assert not torch.allclose(q.mean, inner(x, t, label=label).mean, atol=1e-4)


def test_no_signal_no_push():
    """At t = 1 of a straight path alpha = 0, and sigma^2 / alpha is infinite."""
    data = Labelled(gaussian("straight"), MEANS, WEIGHTS)
    x, label = rows(3).normal((3, 2)).double(), torch.tensor([0, 1, 2])
    q = guided(data, "classifier", run="judge")(x, number(1.0), label=label)
    torch.testing.assert_close(q.mean, data(x, number(1.0), label=label).mean)


@pytest.mark.parametrize("at", ["noisy", "clean"])
def test_an_energy_of_the_same_family_is_a_product_of_normals(at):
    """exp(-E) with E = |x - 1|^2 / 2, on exact normal data: score - grad E."""
    process = gaussian("vp")
    data, t, x = NormalData(process, 0.25), number(0.3), rows(4).normal((4, 2)).double()
    q = guided(data, "energy", energy=QUADRATIC, at=at)(x, t)
    jacobian = (data(x + 1, t).mean - data(x, t).mean) if at == "clean" else 1.0
    gap = (data(x, t).mean if at == "clean" else x) - 1
    score = process.score(q, x, t) - process.score(data(x, t), x, t)
    torch.testing.assert_close(score, -jacobian * gap)


ENERGIES = {
    "quadratic": ({"std": 2.0}, lambda x: (x**2).sum(1) / 8),
    "linear": ({"slope": 3.0}, lambda x: -3 * x.sum(1)),
    "cosine": (
        {"path": "y"},
        lambda x: -sum(torch.cosine_similarity(x, y[None]) for y in MEANS) / 3,
    ),
}


@pytest.mark.parametrize("name", energies.names())
def test_energies_are_their_equations(name):
    own, expected = ENERGIES[name]
    energy, x = energies.build({"name": name, **own}, context=place()), MEANS + 0.3
    torch.testing.assert_close(energy(x), expected(x))
    assert slope(energy, x).shape == x.shape
    if name != "cosine":
        near = energies.build({"name": name, "path": "y"}, context=place())
        m = MEANS.mean(0)
        there = {"quadratic": ((x - m) ** 2).sum(1) / 2, "linear": -x @ m}
        torch.testing.assert_close(near(x), there[name])


def test_gradients_are_float32_and_no_gradient_is_left_behind():
    model, x = Counted(), rows(4).normal((4, 2))
    labels = {"label": torch.tensor([0, 1, 2, 0])}
    for at in ("noisy", "clean"):
        q = guided(model, "energy", energy=QUADRATIC, at=at)(x, number(0.4), **labels)
        assert q.mean.dtype == torch.float32 and not q.mean.requires_grad
    half = slope(lambda x: x.float().square().sum(1), x.half())
    assert half.dtype == torch.float32
    assert isinstance(q, Point) and isinstance(model, Denoiser)
