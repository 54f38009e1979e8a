"""Distances of point sets: closed forms, floors and refusals (T10.4)."""

import math
import sys

import pytest
import torch
from measured import Stub
from oracles import NormalData, gaussian, rows

from diffusion_cli.core import Spec
from diffusion_cli.errors import ConfigError, DataError, EnvironmentFault, NumericsError
from diffusion_cli.metrics import metrics
from diffusion_cli.metrics.points import optimal_transport
from diffusion_cli.metrics.summaries import summary

ALL = ("w2", "sliced_w2", "mmd")


def build(name, **own):
    return metrics.build({"name": name, **own})


def normals(n, d, seed=0):
    return rows(n, seed).normal((n, d), torch.float64)


def subject(x0, drawn):
    return Stub(NormalData(gaussian("vp")), x0, drawn)


def distance(name, x, y):
    return optimal_transport(x, y) if name == "w2" else build(name).distance(x, y)


@pytest.mark.parametrize("name", ["w2", "sliced_w2"])
def test_a_set_and_its_permutation_coincide(name):
    """T10.4."""
    x = normals(200, 3)
    assert distance(name, x, x[torch.arange(199, -1, -1)]) == pytest.approx(0, abs=1e-7)


def test_w2_of_two_sets_on_a_line_by_sorting():
    """T10.4: in one dimension the quantiles meet."""
    x, y = normals(300, 1), 2 * normals(300, 1, 1) + 0.5
    exact = (x.sort(0).values - y.sort(0).values).square().mean().sqrt()
    assert optimal_transport(x, y) == pytest.approx(float(exact), rel=1e-9)
    assert distance("sliced_w2", x, y) == pytest.approx(float(exact), rel=1e-9)


def test_w2_under_a_linear_map_by_bures():
    """T10.4: the map S1^-1/2 (S1^1/2 S2 S1^1/2)^1/2 S1^-1/2 is optimal, points or not.

    A set and its image under the gradient of a convex function are W2 apart by the root
    of the mean squared shift: Bures' formula with the moments of the set.
    """
    x = normals(250, 3) @ torch.diag(torch.tensor([1.0, 0.5, 2.0]).double())
    a = torch.tensor([[2.0, 0.3, 0.0], [0.3, 1.0, -0.2], [0.0, -0.2, 0.5]]).double()
    shift = torch.tensor([0.3, -0.1, 0.2]).double()
    y = x @ a + shift
    assert bool((torch.linalg.eigvalsh(a) > 0).all())

    def root(matrix):
        values, vectors = torch.linalg.eigh(matrix)
        return vectors @ torch.diag(values.clamp(min=0).sqrt()) @ vectors.T

    (m1, s1), (m2, s2) = ((z.mean(0), z.T.cov(correction=0)) for z in (x, y))
    middle = root(root(s1) @ s2 @ root(s1))
    bures = (m1 - m2).square().sum() + (s1 + s2 - 2 * middle).trace()
    mixed = y[torch.arange(250).flip(0)]
    assert optimal_transport(x, mixed) == pytest.approx(math.sqrt(bures), rel=1e-9)


def test_a_shift_in_sliced_w2():
    """|m| / sqrt(d) on average over the lines."""
    x, m = normals(100, 4), torch.tensor([1.0, -2.0, 0.0, 0.5]).double()
    got = build("sliced_w2", projections=20_000).distance(x, x + m)
    assert got == pytest.approx(float(m.norm()) / 2, rel=0.02)


def test_mmd_is_unbiased_and_has_the_value_of_two_normals():
    """E[k(x, y)] of normals with variances p and q in one dimension, one bandwidth h:
    h / sqrt(h^2 + p + q) exp(-shift^2 / (2 (h^2 + p + q)))."""
    n, tries = 100, 60
    equal, apart = [], []
    for i in range(tries):
        x, y = normals(n, 1, 2 * i), normals(n, 1, 2 * i + 1)
        metric = build("mmd", scales=[1.0])
        equal.append(metric.distance(x, y))
        apart.append(metric.distance(x + 2, y))
    h2 = (0.6744897501960817 * math.sqrt(2)) ** 2  # median |y - y'|
    k = math.sqrt(h2 / (h2 + 2))
    exact = 2 * k * (1 - math.exp(-4 / (2 * (h2 + 2))))
    for found, expected in ((equal, 0.0), (apart, exact)):
        values = torch.tensor(found)
        doubt = float(values.std()) / math.sqrt(tries)
        assert float(values.mean()) == pytest.approx(expected, abs=4 * doubt + 2e-3)
    assert min(equal) < 0 < exact


@pytest.mark.parametrize("name", ALL)
def test_a_perfect_model_reaches_the_floor_and_a_bad_one_does_not(name):
    data, fresh = normals(800, 2), normals(400, 2, 7)
    key = "mmd2" if name == "mmd" else name
    perfect = build(name, n=400)(subject(data, fresh)).values
    assert set(perfect) == {key, f"{key}_floor"}
    bad = build(name, n=400)(subject(data, 1.5 * fresh + 0.3)).values
    assert bad[f"{key}_floor"] == perfect[f"{key}_floor"]
    worst = max(abs(perfect[key]), abs(perfect[f"{key}_floor"]))
    assert bad[key] > 2 * worst
    if name != "mmd":  # which is unbiased: nothing is left but its noise
        assert perfect[key] < 2 * perfect[f"{key}_floor"]


def test_halves_are_disjoint_and_small_data_shrink_them():
    data = torch.arange(10.0)[:, None]
    result = build("w2", n=100)(subject(data, torch.zeros(100, 1)))
    assert result.values["w2"] == pytest.approx(math.sqrt(6))  # of 0 .. 4 to 0
    assert result.values["w2_floor"] == pytest.approx(5)
    assert any("200 data; there are enough for 5" in note for note in result.notes)


@pytest.mark.parametrize("name", ALL)
def test_what_cannot_be_compared_is_refused(name):
    with pytest.raises(DataError, match="needs 4 data"):
        build(name)(subject(normals(3, 2), normals(3, 2)))
    broken = normals(20, 2)
    broken[3, 1] = math.nan
    with pytest.raises(NumericsError):
        build(name, n=10)(subject(normals(20, 2), broken))
    tokens = subject(normals(20, 2), normals(20, 2))
    tokens.model.spec = Spec((2,), kind="tokens", vocab=3)
    with pytest.raises(ConfigError, match="real numbers"):
        build(name)(tokens)
    with pytest.raises(ConfigError, match="n: must be"):
        build(name, n=1)


def test_without_pot_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ot", None)
    with pytest.raises(EnvironmentFault, match="POT") as caught:
        build("w2", n=10)(subject(normals(20, 2), normals(20, 2)))
    assert caught.value.hint == "pip install 'diffusion-cli[ot]'"


def test_a_standard_error():
    values = torch.tensor([1.0, 2.0, 3.0, 6.0])
    got = summary("x", values)
    assert got == {"x": 3.0, "x_se": pytest.approx(float(values.std()) / 2)}
    assert math.isnan(summary("x", values[:1])["x_se"])
