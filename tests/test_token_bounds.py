"""The bounds of exact beliefs are the entropy of the data, by enumeration (T7.3)."""

import math

import pytest
import torch
from oracles import number, rows
from token_oracles import (
    Table,
    build,
    certain,
    entropy,
    everything,
    table,
)
from token_tables import COUNTED, data_and_states, transition

from diffusion_cli.core import Categorical


def bound(process, exact, times, weights):
    """The bound in nats per sample by quadrature over t and enumeration over x_t."""
    data, states = data_and_states(process)
    p, total = exact.p, 0.0
    for t, weight in zip(times, weights, strict=True):
        forward = exact.law(states, data, float(t)).T  # (data, states)
        seen = (p @ forward) > 0
        x = states[seen]
        q = exact(x, t)
        for k, x0 in enumerate(data):
            own = forward[k, seen] > 0
            part = Categorical(q.logits[own])
            x0s = x0.expand(int(own.sum()), -1)
            nats = process.bound(part, x0s, x[own], t.expand(len(x0s)))
            total += float(weight * p[k] * (forward[k, seen][own] @ nats))
    return total


def gauss(low, high, count=24):
    import numpy as np

    nodes, weights = np.polynomial.legendre.leggauss(count)
    t = torch.from_numpy((nodes + 1) / 2 * (high - low) + low)
    return t, torch.from_numpy(weights / 2)  # a mean


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_masked_bound_of_exact_beliefs_is_the_entropy(schedule):
    """T7.3: of a random 3-bit table, for any schedule."""
    process = build("mask", 2, 3, schedule={"name": schedule}, floor=1e-9)
    p = table(2, 3, seed=1)
    found = bound(process, Table("mask", process, p), *gauss(1e-9, 1))
    assert found == pytest.approx(entropy(p), abs=1e-7)


def test_the_masked_bound_of_independent_tokens_is_their_entropy():
    """T7.3: L H(unigram)."""
    one = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    p = (one[everything(3, 3)]).prod(1)
    process = build("mask", 3, 3, floor=1e-9)
    found = bound(process, Table("mask", process, p), *gauss(1e-9, 1))
    assert found == pytest.approx(3 * entropy(one), abs=1e-7)


def test_a_floor_leaves_the_decoder_its_part():
    """T7.3 with the times below the floor told by the decoder, exactly."""
    p, floor = table(2, 3, seed=1), 0.2
    process = build("mask", 2, 3, floor=floor)
    exact = Table("mask", process, p)
    data, states = data_and_states(process)
    forward = exact.law(states, data, floor).T
    q, decoded = exact(states, number(floor)), 0.0
    for k, x0 in enumerate(data):
        nats = process.decoder(q, x0.expand_as(states), states)
        decoded += float(p[k] * (forward[k] @ nats))
    whole = bound(process, exact, *gauss(floor, 1)) + decoded
    below = bound(build("mask", 2, 3, floor=1e-9), exact, *gauss(1e-9, floor))
    assert decoded >= below * floor  # hidden at once cost more than one by one
    assert whole == pytest.approx(entropy(p) - below * floor + decoded, abs=1e-6)


@pytest.mark.parametrize("name", COUNTED)
def test_the_counted_bound_of_exact_beliefs_is_the_entropy(name):
    """T7.3 by levels: exact for mask_count; edit is no Markov chain, and pays."""
    process, p = build(name, 3, 2), table(3, 2, seed=1)
    exact, times = Table(name, process, p), torch.arange(1, 3).double() / 2
    found = bound(process, exact, times, torch.ones(2).double() / 2)
    steps = told_by_a_step(exact, 1.0, 0.5) + told_by_a_step(exact, 0.5, 0.0)
    assert found == pytest.approx(steps, abs=1e-9)
    gap = float(process.leftover(torch.zeros(1, 2).long()))
    if name == "mask_count":
        assert found == pytest.approx(entropy(p), abs=1e-9) and gap == 0
    else:
        assert found + told_at_the_end(exact) > entropy(p) + 0.1
        assert gap == pytest.approx(2 * math.log(3 / 2))
        assert gap >= told_at_the_end(exact)


def told_by_a_step(exact, t, s):
    """I(x_s; x_0 | x_t) in nats, by enumeration."""
    process, p, total = exact.process, exact.p, 0.0
    data, states = data_and_states(process)
    forward = exact.law(states, data, t).T  # (data, states)
    beliefs = [certain(x0.expand_as(states), process.vocab) for x0 in data]
    steps = [transition(process, q, states, t, s) for q in beliefs]
    own = torch.stack(steps)  # q(x_s | x_t, x_0), (data, x_t, x_s)
    joint = p[:, None] * forward
    mixed = torch.einsum("dt,dts->ts", joint, own.nan_to_num()) / joint.sum(0)[:, None]
    for k in range(len(data)):
        for i in forward[k].nonzero()[:, 0]:
            there = own[k, i] > 0
            nats = own[k, i, there] * (own[k, i, there] / mixed[i, there]).log()
            total += float(joint[k, i] * nats.sum())
    return total


def told_at_the_end(exact):
    """I(x_0; x_1) in nats: the price of a prior that knows p(x_1)."""
    _, states = data_and_states(exact.process)
    ends = exact.law(states, exact.data, 1.0).T  # q(x_1 | x_0), (data, states)
    ratio = torch.where(ends > 0, ends / (exact.p @ ends).clamp(min=1e-300), 1.0)
    return float((exact.p[:, None] * ends * ratio.log()).sum())


def test_the_uniform_bound_of_exact_beliefs_is_the_entropy():
    """T7.3 for the continuous-time chain: with prior and decoder, within the floor."""
    p, floor = table(3, 2, seed=2), 1e-3
    process = build("uniform", 3, 2, floor=floor)
    exact = Table("uniform", process, p)
    # much happens near t = 0: quadrature in log t
    u, weights = gauss(math.log(floor), 0.0, 60)
    t = u.exp()
    scaled = weights * t * -math.log(floor) / (1 - floor)
    found = bound(process, exact, t, scaled)
    data, states = data_and_states(process)
    forward, q = exact.law(states, data, floor).T, exact(states, number(floor))
    for k, x0 in enumerate(data):
        nats = process.decoder(q, x0.expand_as(states), states)
        found += float(p[k] * (forward[k] @ nats))
    assert found == pytest.approx(entropy(p), abs=1e-4)
    assert found >= entropy(p) - 1e-6
    assert abs(float(process.leftover(data)[0])) < 1e-12


@pytest.mark.parametrize("name", ["mask", "uniform"])
def test_the_integrand_is_the_rate_of_a_small_step(name):
    """bound(t) = KL(q(x_s | x_t, x_0) || p(x_s | x_t)) / (t - s), for any belief."""
    process, n, h = build(name), 50, 1e-6
    x0, t = rows(n, 2).integers(3, (n, 3)), number(0.6)
    x = process.corrupt(x0, t, process.noise(x0, rows(n)))
    reading = Categorical(rows(n, 3).normal((n, 3, 3)).double())
    visible = (x < 3)[..., None] if name == "mask" else torch.tensor(False)
    known = certain(x0, 3).logits
    q = Categorical(torch.where(visible, known, reading.logits))
    truth, step = (
        process.step(b, x, t, t - h).clamp(min=1e-300) for b in (certain(x0, 3), q)
    )
    nats = (truth * (truth / step).log()).sum((1, 2)) / h
    low, high = process.span
    found = process.bound(q, x0, x, t.expand(n)) / (high - low)
    torch.testing.assert_close(found, nats, rtol=1e-3, atol=1e-4)
    assert float(found.min()) >= 0 and float(found.max()) > 1


@pytest.mark.parametrize("mixing", ["mixture", "d3pm"])
def test_the_d3pm_bound_of_exact_beliefs_is_the_entropy(mixing):
    """T7.3 for one token, where a step makes nothing independent: exact at any T."""
    p = table(3, 1, seed=2)
    process = build("d3pm", 3, 1, mixing=mixing)
    exact = Table("d3pm", process, p)
    times = torch.arange(1, 21).double() / 20
    found = bound(process, exact, times, torch.ones(20).double() / 20)
    above = found + told_at_the_end(exact) - entropy(p)
    if mixing == "mixture":
        assert abs(above) < 1e-9
    else:  # T7.2: with that rule the true belief is not the best one
        assert above > 1e-3
