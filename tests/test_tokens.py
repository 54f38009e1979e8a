"""Discrete diffusion on tables: its laws and steps, by enumeration (T7.1, T7.2)."""

import pytest
import torch
from oracles import number, rows
from token_oracles import (
    Table,
    build,
    certain,
    likelihood,
    stepping,
    symbols,
    table,
)
from token_tables import COUNTED, EVERY, STEPS, data_and_states, radix, transition

from diffusion_cli.core import Categorical
from diffusion_cli.processes import processes

FACTORISED = ["mask", "uniform", "d3pm"]
LATER = {name: [(1.0, 0.55), (0.2, 0.05), (0.05, 0.0)] for name in FACTORISED}
LATER |= {name: [(1.0, 2 / 3), (1 / 3, 0.0)] for name in COUNTED}


def test_every_token_process_is_tested():
    kinds = {name for name in processes.names() if processes[name].kind == "tokens"}
    assert kinds == set(EVERY)


@pytest.mark.parametrize(
    ("name", "t", "s"), [(n, *ts) for n in EVERY for ts in (STEPS[n], *LATER[n])]
)
def test_marg_by_enumeration(name, t, s):
    """T7.1: sum over x_t of p(x_s | x_t, x_0) q(x_t | x_0) = q(x_s | x_0)."""
    process = build(name)
    law = likelihood(name, process)
    data, states = data_and_states(process)
    forward = law(states, data, t).T  # (data, states)
    torch.testing.assert_close(forward.sum(1), torch.ones(len(data)).double())
    for k, x0 in enumerate(data):
        q = certain(x0.expand_as(states), process.vocab)
        back = transition(process, q, states, t, s)
        assert bool((back >= 0).all())
        seen = forward[k] > 0
        torch.testing.assert_close(
            back[seen].sum(1), torch.ones(int(seen.sum())).double()
        )
        expected = law(states, x0[None], s)[:, 0]
        torch.testing.assert_close(forward[k] @ back, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", EVERY)
def test_the_corruption_has_the_law_of_the_theory(name):
    """q(x_t | x_0) of the theory against 60,000 draws of `noise` and `corrupt`."""
    process, n = build(name), 60_000
    t = STEPS[name][0]
    x0 = torch.tensor([[2, 0, 1]]).expand(n, 3)
    x = process.corrupt(x0, torch.full((n,), t).double(), process.noise(x0, rows(n)))
    _, states = data_and_states(process)
    expected = likelihood(name, process)(states, x0[:1], t)[:, 0]
    found = (x @ radix(process)).bincount(minlength=len(states)) / n
    error = 5 * (expected * (1 - expected) / n).sqrt() + 1e-9
    assert bool(((found - expected).abs() <= error).all())
    once = process.corrupt(x0[:1], number(t), process.noise(x0[:1], rows(1)))
    assert torch.equal(once, x[:1])


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("kernel", ["posterior", "restart"])
def test_steps_draw_from_their_law(name, kernel):
    """MARG by 60,000 draws of `reverse`, several positions at once; K0 and K1."""
    process, n, x0 = build(name), 60_000, torch.tensor([[2, 0, 1]])
    t, s = (1.0, 1 / 3) if name in COUNTED else STEPS[name]
    clean = x0.expand(n, 3)
    x = process.corrupt(clean, number(t), process.noise(clean, rows(n)))
    q = certain(clean, process.vocab)
    after = process.reverse(q, x, number(t), number(s), rows(n, 1), kernel=kernel)
    _, states = data_and_states(process)
    expected = likelihood(name, process)(states, x0, s)[:, 0]
    found = (after @ radix(process)).bincount(minlength=len(states)) / n
    error = 5 * (expected * (1 - expected) / n).sqrt() + 1e-9
    assert bool(((found - expected).abs() <= error).all())


@pytest.mark.parametrize("name", EVERY)
def test_the_mixture_is_exact_for_one_position_at_a_time(name):
    """T7.2: with the exact belief, from the joint law of data and path.

    A step that can change several positions makes them independent given x_t, so the
    law of each position is compared; a counted step of one is compared as a whole.
    """
    process, (t, s) = build(name), STEPS[name]
    exact = Table(name, process, table())
    data, states = data_and_states(process)
    x = states[exact.law(states, data, t).sum(1) > 0]
    joint = exact.joint(x, t)
    path = torch.stack(
        [
            transition(process, certain(x0.expand_as(x), process.vocab), x, t, s)
            for x0 in data
        ],
        1,
    )  # q(x_s | x_t, x_0), (N, data, states)
    possible = exact.law(x, data, t)[..., None] > 0
    true = (joint[..., None] * torch.where(possible, path, 0.0)).sum(1)
    found = transition(process, exact(x, number(t)), x, t, s)
    if name in COUNTED:
        torch.testing.assert_close(found, true, rtol=1e-9, atol=1e-12)
    for i in range(process.length):
        for v in range(symbols(process)):
            own = states[:, i] == v
            torch.testing.assert_close(found[:, own].sum(1), true[:, own].sum(1))


@pytest.mark.parametrize("matrix", ["gaussian", "uniform"])
def test_d3pms_own_mixing_is_wrong_for_the_exact_belief(matrix):
    """T7.2, the hazard: total variation of one step, K = 5; the mixture has none."""
    beta = 0.4 if matrix == "uniform" else 1.0
    levels, p = 10, table(5, 1, seed=3)
    own = {"matrix": matrix, "levels": levels, "beta_min": beta, "beta_max": beta}
    product = torch.eye(5).double()
    one = stepping(5, beta)
    if matrix == "uniform":
        one = (1 - beta) * torch.eye(5).double() + beta / 5
    for _ in range(4):
        product = product @ one
    before, after = product, product @ one  # to levels 4 and 5
    x = torch.arange(5)[:, None]
    weights = p * after[:, x[:, 0]].T  # p(x_0) q(x_t | x_0), (x_t, x_0)
    q = Categorical((weights / weights.sum(1, keepdim=True)).log()[:, None])
    truth = one[:, x[:, 0]].T * (p @ before)
    truth = truth / truth.sum(1, keepdim=True)
    gaps = {}
    for mixing in ("mixture", "d3pm"):
        process = build("d3pm", 5, 1, mixing=mixing, **own)
        found = process.step(q, x, number(0.5), number(0.4))[:, 0]
        gaps[mixing] = float((found - truth).abs().sum(1).max()) / 2
    assert gaps["mixture"] < 1e-12
    assert gaps["d3pm"] > 0.01
    # its own optimum is not the belief but the prior of the data
    prior = Categorical(p.log().expand(5, 1, 5))
    found = build("d3pm", 5, 1, mixing="d3pm", **own).step(
        prior, x, number(0.5), number(0.4)
    )[:, 0]
    torch.testing.assert_close(found, truth)
