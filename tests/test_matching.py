"""Score matching without a target: slices, exact traces, and their attention (T13)."""

import math

import pytest
import torch
from oracles import Mixture, NormalData, gaussian, number, rows
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

LEVEL = 0.7
ONE = {"name": "discrete", "levels": 1}  # t = 1 alone
VARIANCES = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)


def one_level(sigma=LEVEL):
    """A process whose one training time has this noise."""
    return gaussian("karras", sigma_max=sigma)


def build(name, weight="simple", time=ONE, **own):
    node = {"name": name, "weight": {"name": weight}, "time": time, **own}
    return objectives.build(node, coupling=couplings.build({"name": "independent"}))


class Linear(Denoiser):
    """The belief of the score s(x) = -A x, at one level."""

    def __init__(self, process, matrix):
        super().__init__()
        self.process, self.matrix = process, nn.Parameter(matrix)

    def forward(self, x, t, **cond):
        k = self.process.at(t, x)
        return Point((x - k.sigma**2 * x @ self.matrix.T) / k.alpha)


def score_loss(losses, d):
    """tr J + |s|^2 / 2 from a loss with the weight `simple`."""
    return (losses - 1) * d / (2 * LEVEL**2)


def normals(n, variances, seed=0):
    return rows(n, seed).normal((n, len(variances)), torch.float64) * variances.sqrt()


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("implicit", {}),
        ("sliced", {}),
        ("sliced", {"reduced": False}),
        ("sliced", {"law": "gaussian"}),
        ("sliced", {"law": "sphere", "slices": 2}),
        ("sliced", {"law": "gaussian", "reduced": False, "slices": 3}),
    ],
)
def test_a_linear_score_has_the_loss_of_its_matrix(name, own):
    """T13.1: E = -tr A + tr(A V A^T) / 2; least at A = 1/V, -tr(1/V) / 2 = -1.75."""
    n, process = 40_000, one_level()
    x0 = normals(n, VARIANCES - LEVEL**2)  # so that x has VARIANCES
    general = torch.tensor(
        [[0.8, 0.3, 0.0], [-0.4, 0.5, 0.2], [0.1, 0.0, 1.1]], dtype=torch.float64
    )
    for matrix, golden in ((general, None), ((1 / VARIANCES).diag(), -1.75)):
        model = Linear(process, matrix)
        losses = build(name, **own)(model, x0, rows(n, 1)).detach().double()
        found = score_loss(losses, 3)
        exact = -matrix.trace() + (matrix @ VARIANCES.diag() @ matrix.T).trace() / 2
        assert golden is None or float(exact) == pytest.approx(golden)
        error = 4 * float(found.std()) / n**0.5
        assert error < 0.1
        assert float(found.mean()) == pytest.approx(float(exact), abs=error)


def test_slices_of_unit_spread_are_exact_for_a_symmetric_trace():
    """v^T D v = tr D for signs v and a diagonal D: no variance at all is left."""
    process, x0 = one_level(), normals(64, VARIANCES)
    model = Linear(process, VARIANCES.diag())
    exact = build("implicit")(model, x0, rows(64, 1))
    torch.testing.assert_close(build("sliced")(model, x0, rows(64, 1)), exact)
    plain = build("sliced", reduced=False)(model, x0, rows(64, 1))
    assert float((plain - exact).detach().abs().max()) > 0.1


def test_reduced_slices_vary_less_and_many_less_than_one():
    n, process = 4000, one_level()
    turn = torch.tensor([[0.5, 0.9], [-0.9, 0.5]], dtype=torch.float64)
    model, x0 = Linear(process, turn), torch.full((n, 2), 0.3, dtype=torch.float64)

    def spread(**own):
        own = {"law": "gaussian", **own}
        losses = build("sliced", **own)(model, x0, rows(n, 1))
        exact = build("implicit")(model, x0, rows(n, 1))
        return float((losses - exact).detach().std())

    one, plain, eight = spread(), spread(reduced=False), spread(slices=8)
    assert plain > 1.1 * one
    assert eight == pytest.approx(one / 8**0.5, rel=0.15)


def test_the_least_loss_of_denoising():
    """T13.2: d / b^2 - tr (V + b^2)^-1 at the optimum, 4.0396 for b = 0.7."""
    n, process = 120_000, one_level()
    x0 = normals(n, VARIANCES)
    losses = build("denoise")(NormalData(process, VARIANCES), x0, rows(n, 1))
    found = losses.double() * 3 / LEVEL**2
    error = 4 * float(found.std()) / n**0.5
    assert error < 0.05
    assert float(found.mean()) == pytest.approx(4.0396, abs=error)
    best = (1 / (VARIANCES + LEVEL**2)).diag()
    torch.testing.assert_close(
        build("denoise")(Linear(process, best), x0, rows(n, 1)), losses
    )


def network(schedule="karras", **own):
    """A small perceptron in float64, smooth and with no zeros left in it."""
    torch.manual_seed(0)
    spec = Spec((2,))
    net = networks.build(
        {"name": "mlp", "width": 12, "depth": 1, "fourier": 1},
        state=spec,
        out=(2,),
    ).double()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3)
    reading = parametrisations.build({"name": "edm"})
    return Model(gaussian(schedule, **own), net, reading, spec)


def slope(losses, model):
    """The gradient of the mean loss, and its error if the loss is a mean of samples."""
    parameters = list(model.network.parameters())
    parts = torch.autograd.grad(losses.mean(), parameters, allow_unused=True)
    return torch.cat([part.flatten() for part in parts if part is not None])


@pytest.mark.parametrize("weight", ["simple", "x0", "edm", "likelihood", "velocity"])
@pytest.mark.parametrize("schedule", ["karras", "vp", "straight"])
def test_all_forms_have_one_expectation(schedule, weight):
    """By parts: denoising, sliced and implicit losses of any net have one mean."""
    n, model = 60_000, network(schedule)
    time = {"name": "lognormal", "mean": 0.0, "std": 0.3}
    x0 = normals(n, torch.tensor([0.3, 0.5], dtype=torch.float64)) + 0.2
    denoise, implicit, sliced = (
        build(name, weight, time)(model, x0, rows(n, 1)).detach().double()
        for name in ("denoise", "implicit", "sliced")
    )
    for losses in (implicit, sliced):
        gap = losses - denoise
        error = 4 * float(gap.std()) / n**0.5
        assert error < 0.2 * float(denoise.mean())
        assert float(gap.mean()) == pytest.approx(0, abs=error)


def test_gradients_agree_with_the_exact_score():
    """T13.3: d DSM = d ISM = d ESM on FIX-M, within the error of the samples."""
    n, blocks = 40_000, 40
    model = network(sigma_max=0.5)
    process = model.process
    data = Mixture(process, torch.ones(2), torch.tensor([[-1.0, 0.3], [0.8, 0.0]]), 0.1)
    x0 = data.sample(n, rows(n))

    def gradients(form):
        out = []
        for part in torch.arange(n).chunk(blocks):
            rng = rows(n, 1).of(part)
            if form != "explicit":
                losses = build(form)(model, x0[part], rng)
            else:
                noise = process.noise(x0[part], rng.child("corruption"))
                t = torch.ones(len(part), dtype=torch.float64)
                x = process.corrupt(x0[part], t, noise)
                gap = process.score(model(x, t), x, t) - data.score(x, number(1.0))
                losses = (0.5 * gap).square().mean(1)  # sigma = 0.5
            out.append(slope(losses, model))
        return torch.stack(out)

    explicit = gradients("explicit")
    for form in ("denoise", "implicit", "sliced"):
        gap = gradients(form) - explicit
        error = gap.std(0) / blocks**0.5
        assert float(gap.mean(0).norm()) < 4 * float(error.norm())
        assert float(error.norm()) < 0.2 * float(explicit.mean(0).norm())


@pytest.mark.parametrize("name", ["sliced", "implicit"])
def test_gradients_are_those_of_finite_differences(name):
    """T13.3, in float64: the second derivatives are really there."""
    model, x0 = network("vp"), normals(5, VARIANCES[:2])
    uniform = {"name": "uniform"}
    objective = build(name, "x0", uniform)
    objective_double(objective)
    weights = [p for p in model.network.parameters() if p.ndim == 2]

    def loss():
        return objective(model, x0, rows(5, 1)).sum()

    for weight in weights:
        (exact,) = torch.autograd.grad(loss(), weight)
        place, h = (0, 1), 1e-6
        with torch.no_grad():
            weight[place] += h
            above = float(loss())
            weight[place] -= 2 * h
            below = float(loss())
            weight[place] += h
        found = (above - below) / (2 * h)
        assert found == pytest.approx(float(exact[place]), rel=1e-4, abs=1e-7)


def objective_double(objective):
    """Losses in float64, for differences; else they are float32."""
    objective.corrected = lambda losses, t: losses


DIT = {"name": "dit", "depth": 1, "width": 8, "heads": 2, "patch": 4}
IMAGES = {
    "dataset": {"name": "digits", "labels": False},
    "process": {"name": "gaussian", "schedule": {"name": "vp"}},
    "parametrisation": {"name": "edm"},
    "network": DIT,
    "objective": {
        "name": "sliced",
        "weight": {"name": "simple"},
        "time": {"name": "uniform"},
    },
}


@pytest.mark.parametrize("recompute", ["none", "norms", "attention", "blocks"])
def test_attention_is_differentiated_twice(recompute):
    """Fused kernels have one derivative; the trainer takes the plain ones."""
    runs = [Setup(parts=IMAGES, recompute=recompute, micro_batch=m) for m in (8, 4)]
    before = snapshot(runs[0].state)
    after = [snapshot(run.train(2)) for run in runs]
    moved = [key for key in before if not torch.equal(before[key], after[0][key])]
    assert any("attention" in key for key in moved)
    for key in after[0]:
        torch.testing.assert_close(after[0][key], after[1][key], rtol=1e-3, atol=1e-4)


def test_without_the_plain_attention_there_is_no_second_derivative(monkeypatch):
    from diffusion_cli.objectives import Objective

    run = Setup(parts=IMAGES)
    monkeypatch.setattr(type(run.state.objective), "plain", Objective.plain)
    with pytest.raises(RuntimeError, match="not implemented"):
        run.train(1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"process": {"name": "electrostatic", "schedule": {"name": "karras"}}},
            "objective: `sliced` needs a process with Gaussian noise",
        ),
        ({"trainer": {"compile": True}}, "trainer.compile: objective `sliced` takes"),
        (
            {"objective": IMAGES["objective"] | {"name": "implicit"}},
            "`implicit` takes a backward pass for each of 64 coordinates",
        ),
        ({"objective": IMAGES["objective"] | {"slices": 0}}, "slices: must be >= 1"),
        (
            {"parametrisation": {"name": "learned", "mean": {"name": "eps"}}},
            "`sliced` trains no variance",
        ),
    ],
)
def test_what_cannot_go_with_it_is_refused(changes, message):
    with pytest.raises(ConfigError) as caught:
        assemble.parts(tiny(**IMAGES | changes), Spec((1, 8, 8)))
    assert message in caught.value.render()
    assert math.isfinite(LEVEL)
