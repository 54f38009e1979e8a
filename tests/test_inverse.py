"""Linear inverse problems: operators, T6.4, Bayes' rule, and replacement."""

import pytest
import torch
from contexts import Stub
from oracles import NormalData, gaussian, number, rows

from diffusion_cli.core import Point
from diffusion_cli.errors import ConfigError
from diffusion_cli.guidance import guidances, operators
from diffusion_cli.samplers import samplers

OPERATORS = [
    {"name": "identity"},
    {"name": "mask"},
    {"name": "mask", "hidden": "half", "fraction": 0.25},
    {"name": "mask", "hidden": "random", "fraction": 0.3, "seed": 5},
    {"name": "downsample"},
    {"name": "downsample", "factor": 4},
]
SHAPES = [(3, 8), (2, 3, 8, 4)]


def inverse(denoiser, samples, operator, **own):
    node = {"name": "inverse", "path": "y", "operator": operator, **own}
    return guidances.build(
        node, denoiser=denoiser, context=Stub(samples={"y": samples})
    )


def test_every_operator_is_measured():
    assert {node["name"] for node in OPERATORS} == set(operators.names())


@pytest.mark.parametrize("node", OPERATORS, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_operators_are_linear_with_orthogonal_rows(node, shape):
    """A back(A x) = A x; back = A^T / gain, with A^T by autograd."""
    operator = operators.build(node)
    x, z = (rows(shape[0], i).normal(shape).double() for i in (0, 1))
    y = operator(x).clone()
    torch.testing.assert_close(operator(2 * x - z), 2 * y - operator(z))
    torch.testing.assert_close(operator(operator.back(y)), y)
    x.requires_grad_()
    (transposed,) = torch.autograd.grad((operator(x) * y).sum(), x)
    torch.testing.assert_close(transposed / operator.gain(y), operator.back(y))


def test_masks_hide_what_they_say():
    x = torch.ones(1, 2, 8, 8)

    def seen(**own):
        return operators.build({"name": "mask", **own})(x)[0]

    box = seen()
    assert torch.equal(box[0], box[1]) and float(box[0].sum()) == 64 - 16
    assert not box[:, 2:6, 2:6].any()
    half = seen(hidden="half", fraction=0.25)
    assert half[..., :6].all() and not half[..., 6:].any()
    wide = operators.build({"name": "mask", "hidden": "random", "fraction": 0.3})
    share = float(wide(torch.ones(1, 1, 200, 200)).mean())
    assert share == pytest.approx(0.7, abs=4 * (0.21 / 40_000) ** 0.5)
    assert torch.equal(wide(x), wide(x))
    with pytest.raises(ConfigError, match=r"fraction: must be in \[0, 1\]"):
        seen(fraction=1.5)


def score_of_y(method, t, x, y, s2, noise):
    """The score that guidance adds on normal data."""
    process = gaussian("ve")
    data, one = NormalData(process, s2), torch.full((1, 1), x, dtype=torch.float64)
    own = {"method": method, "noise": noise, "data_std": s2**0.5, "measured": True}
    samples = torch.full((1, 1), y, dtype=torch.float64)
    q = inverse(data, samples, {"name": "identity"}, **own)(one, t)
    return float(process.score(q, one, t) - process.score(data(one, t), one, t))


@pytest.mark.parametrize(
    ("method", "golden"), [("pgdm", 0.583), ("dps", 2.196)], ids=str
)
def test_the_plug_in_of_a_clean_likelihood_is_too_strong(method, golden):
    """T6.4: k (y - k x) / (C + sy2) by Bayes, / sy2 by the plug-in.

    s2 = 1, sy = 1/2, sigma = 1.5, y = 2, x = 0.7.
    """
    process, sigma = gaussian("ve"), 1.5
    t = process.schedule.time(number(sigma))
    found = score_of_y(method, t, 0.7, 2.0, 1.0, 0.5)
    k = 1 / (1 + sigma**2)
    variance = 0.25 + (sigma**2 * k if method == "pgdm" else 0)
    assert found == pytest.approx(k * (2 - 0.7 * k) / variance, rel=1e-9)
    assert found == pytest.approx(golden, abs=5e-4)


@pytest.mark.parametrize("node", OPERATORS, ids=str)
@pytest.mark.parametrize("schedule", ["vp", "straight", "karras"])
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_pgdm_is_bayes_rule_on_normal_data(node, schedule, noise):
    """Against E[x_0 | x_t, y] by dense linear algebra."""
    process, d, s2, m, t = gaussian(schedule), 8, 0.49, 0.3, number(0.6)
    x0 = m + 0.7 * rows(3).normal((3, d)).double()
    x = process.corrupt(x0, t, rows(3, 1).normal((3, d)).double())
    operator = operators.build(node)
    y = operator(x0) + noise * rows(3, 2).normal(operator(x0).shape).double()
    own = {"noise": noise, "data_std": s2**0.5, "measured": True}
    guided = inverse(NormalData(process, s2, m), operator.back(y), node, **own)
    a = operator(torch.eye(d, dtype=torch.float64)).T
    a = a[a.abs().sum(1) > 0]  # a mask measures nothing where it hides
    k = process.schedule(t)
    matrix = torch.cat((k.alpha * torch.eye(d, dtype=torch.float64), a))
    noises = torch.cat((k.sigma**2 * torch.ones(d), noise**2 * torch.ones(len(a))))
    seen = torch.cat(
        (x, x0 @ a.T + (operator.back(y) - operator.back(operator(x0))) @ a.T), 1
    )
    total = s2 * matrix @ matrix.T + torch.diag(noises.double())
    gap = seen - m * matrix.sum(1)
    expected = m + s2 * torch.linalg.solve(total, gap.T).T @ matrix
    torch.testing.assert_close(guided(x, t).mean, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", ["ancestral", "heun", "dpmpp"])
@pytest.mark.parametrize("node", OPERATORS[:4], ids=str)
def test_replacement_ends_with_exactly_what_was_measured(name, node):
    process, samples = gaussian("vp"), rows(3, 9).normal((3, 8))
    guided = inverse(NormalData(process, 0.5), samples, node, method="replace")
    sampler = samplers.build({"name": name, "steps": 6, "grid": {"name": "uniform"}})
    x = process.prior((5, 8), rows(5))
    places = torch.tensor([0, 1, 2, 3, 4])
    *_, x0 = sampler.trajectory(guided.given(rows=places), x, rows(5))
    operator = operators.build(node)
    assert torch.equal(operator(x0), operator(samples)[places % 3])
    assert x0.std() > 0.1


def test_under_replacement_the_known_part_is_the_measurement_made_noisy():
    """At every time N(alpha y, sigma^2): q(x_s | y)."""
    n, process = 20_000, gaussian("vp")
    y = torch.tensor([[0.8, 0.0]])
    mask = {"name": "mask", "hidden": "half"}
    guided = inverse(NormalData(process, 0.5), y, mask, method="replace")
    sampler = samplers.build(
        {"name": "ancestral", "steps": 5, "grid": {"name": "uniform"}}
    )
    times = sampler.grid(process, 5)
    noise = rows(n, 1).normal((n, 2))
    x = process.corrupt(y.expand(n, 2), times[0], noise)
    states = list(sampler.trajectory(guided, x, rows(n)))
    for t, state in zip(times[1:-1], states[:-1], strict=True):
        k = process.schedule(t)
        known, sigma = state[:, 0].double(), float(k.sigma)
        assert abs(float(known.mean() - 0.8 * k.alpha)) < 4 * sigma / n**0.5
        assert abs(float(known.std()) - sigma) < 4 * sigma / (2 * n) ** 0.5


def test_each_sample_follows_its_own_measurement_counted_round():
    process, samples = gaussian("vp"), rows(3, 9).normal((3, 4)).double()
    guided = inverse(
        NormalData(process, 0.5), samples, {"name": "identity"}, method="replace"
    )
    x, places = rows(4).normal((4, 4)).double(), torch.tensor([7, 2, 0, 3])
    expected = samples[places % 3]
    torch.testing.assert_close(guided(x, number(0.5), rows=places).mean, expected)
    torch.testing.assert_close(
        guided(x, number(0.5)).mean, samples[torch.arange(4) % 3]
    )


def test_noise_is_added_once_unless_it_is_there_already():
    process, samples = gaussian("vp"), torch.zeros(2000, 4)
    data = NormalData(process, 0.5)
    own = {"method": "replace", "noise": 0.5}
    one, two = (inverse(data, samples, {"name": "identity"}, **own) for _ in range(2))
    assert torch.equal(one.y, two.y)
    assert abs(float(one.y.std()) - 0.5) < 4 * 0.5 / (2 * 8000) ** 0.5
    clean = inverse(data, samples, {"name": "identity"}, **own, measured=True)
    assert torch.equal(clean.y, samples)


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"method": "dps"}, "noise: must be > 0 for dps"),
        ({"data_std": 0.0}, "data_std: must be > 0"),
        (
            {"operator": {"name": "downsample", "factor": 3}},
            "factor: must be a divisor",
        ),
    ],
)
def test_what_cannot_be_is_refused(own, message):
    node = {"operator": {"name": "identity"}, **own}
    with pytest.raises(ConfigError, match=message):
        inverse(NormalData(gaussian("vp")), torch.zeros(2, 4), **node)


def test_a_normal_belief_keeps_its_spread():
    data = NormalData(gaussian("vp"), 0.5, spread=True)
    q = inverse(data, torch.zeros(2, 4), {"name": "mask"}, method="replace")(
        rows(2).normal((2, 4)), number(0.5)
    )
    assert not isinstance(q, Point) and float(q.var) > 0
