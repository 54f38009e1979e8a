"""Adaptive integration: accuracy, counts, and what it says when it cannot."""

import math
import sys
from collections import Counter

import pytest
import torch

from diffusion_cli.errors import EnvironmentFault, NumericsError
from diffusion_cli.odes import integrate


def times(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("tolerance", [1e-3, 1e-6, 1e-9])
def test_a_rotation_stays_within_the_tolerance(tolerance):
    turn = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
    y = torch.tensor([[1.0, 0.0], [0.0, 3.0]], dtype=torch.float64)
    counts = Counter()
    path = integrate(
        lambda t, y: y @ turn,
        y,
        times(0, 1, 7),
        rtol=tolerance,
        atol=tolerance,
        counts=counts,
    )
    assert path.shape == (3, 2, 2) and torch.equal(path[0], y)
    for t, found in zip((1, 7), path[1:], strict=True):
        exact = y @ torch.linalg.matrix_exp(t * turn)
        assert float((found - exact).abs().max()) < 20 * tolerance
    # two calls choose the first step; a step takes six
    steps = counts["accepted"] + counts["rejected"]
    assert counts["calls"] == 2 + 6 * steps and counts["accepted"] > 3


def test_the_error_falls_with_order_five_in_the_step():
    """T4.4: error ~ tolerance ~ h^5, so the calls grow as error^(-1/5)."""
    errors, work = [], []
    for tolerance in (1e-6, 1e-11):
        counts = Counter()
        path = integrate(
            lambda t, y: y * t.cos(),
            torch.ones(1, 1, dtype=torch.float64),
            times(0, 8),
            rtol=tolerance,
            atol=0.0,
            counts=counts,
        )
        errors.append(abs(float(path[-1]) - math.exp(math.sin(8))))
        work.append(counts["accepted"])
    order = math.log(errors[0] / errors[1]) / math.log(work[1] / work[0])
    assert order == pytest.approx(5, abs=0.5)


def test_there_and_back_with_a_tuple_of_states_and_rejected_steps():
    def field(t, state):
        y, _ = state
        return -torch.tanh(100 * (t - 1)) * y, y.sum(1)

    y = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    start, counts = (y, torch.zeros(2, dtype=torch.float64)), Counter()
    own = {"rtol": 1e-8, "atol": 1e-10, "counts": counts}
    there = integrate(field, start, times(0.7, 1.5), **own)
    back = integrate(field, tuple(part[-1] for part in there), times(1.5, 0.7), **own)
    for part, expected in zip(back, start, strict=True):
        torch.testing.assert_close(part[-1], expected, rtol=1e-7, atol=1e-7)
    assert counts["rejected"] >= 1


def test_the_field_is_asked_within_the_times_alone():
    asked = []

    def field(t, y):
        asked.append(float(t))
        return 0 * y  # steps as long as it likes

    y = torch.ones(1, 1, dtype=torch.float64)
    integrate(field, y, times(2, 0.5), rtol=1e-5, atol=1e-5, counts=Counter())
    assert max(asked) == 2 and min(asked) >= 0.5


def test_the_worst_sample_decides():
    """An error that a batch would hide in its mean stays within the tolerance."""
    rates = torch.zeros(10_000, 1, dtype=torch.float64)
    rates[0] = 5.0
    path = integrate(
        lambda t, y: -rates * (y - (rates * t).sin()),
        torch.ones_like(rates),
        times(0, 2),
        rtol=1e-5,
        atol=1e-5,
        counts=Counter(),
    )
    few = rates[:1]
    alone = integrate(
        lambda t, y: -few * (y - (few * t).sin()),
        torch.ones_like(few),
        times(0, 2),
        rtol=1e-10,
        atol=1e-10,
        counts=Counter(),
    )
    assert abs(float(path[-1, 0] - alone[-1, 0])) < 5e-5


def test_a_field_that_is_not_finite_is_an_error_that_says_so():
    y = torch.ones(1, 1, dtype=torch.float64)
    with pytest.raises(NumericsError, match="stalled"):
        integrate(
            lambda t, y: y / 0, y, times(0, 1), rtol=1e-5, atol=1e-5, counts=Counter()
        )


def test_a_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    with pytest.raises(EnvironmentFault) as caught:
        integrate(
            lambda t, y: y,
            torch.ones(1, 1),
            times(0, 1),
            rtol=1,
            atol=1,
            counts=Counter(),
        )
    assert "diffusion-cli[ode]" in caught.value.hint
