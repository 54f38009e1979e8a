"""Discrete diffusion on tables, by enumeration (T7.1-T7.4, T7.7)."""

import math

import pytest
import torch
from oracles import number, rows
from token_oracles import (
    PROCESSES,
    Table,
    build,
    certain,
    entropy,
    everything,
    likelihood,
    stepping,
    symbols,
    table,
)

from diffusion_cli.core import Categorical, Spec
from diffusion_cli.errors import ConfigError
from diffusion_cli.processes import processes
from diffusion_cli.processes.counted import Counted
from diffusion_cli.processes.tokens import (
    Factorised,
    Masking,
    Tokens,
    choose,
    survivals,
)
from diffusion_cli.samplers import samplers

EVERY = sorted(PROCESSES)
FACTORISED = ["mask", "uniform", "d3pm"]
COUNTED = ["mask_count", "edit"]
STEPS = {name: (0.7, 0.3) for name in ("mask", "uniform")}
STEPS |= {"d3pm": (0.7, 0.3), "mask_count": (2 / 3, 1 / 3), "edit": (2 / 3, 1 / 3)}
LATER = {name: [(1.0, 0.55), (0.2, 0.05), (0.05, 0.0)] for name in FACTORISED}
LATER |= {name: [(1.0, 2 / 3), (1 / 3, 0.0)] for name in COUNTED}
SCHEDULES = survivals.names()


def test_every_token_process_is_tested():
    kinds = {name for name in processes.names() if processes[name].kind == "tokens"}
    assert kinds == set(EVERY)


def transition(process, q, x, t, s):
    """p(x_s | x_t) for whole sequences: (N, states), by enumeration."""
    states = everything(symbols(process), process.length)
    if isinstance(process, Factorised):
        law = process.step(q, x, number(t), number(s))  # (N, L, symbols)
        picked = law[:, torch.arange(process.length), states]  # (N, states, L)
        return picked.prod(-1)
    law = process.jump(q, x)  # (N, L, V): one position changes
    total = torch.zeros(len(x), len(states), dtype=torch.float64)
    for i in range(process.length):
        for v in range(process.vocab):
            after = x.clone()
            after[:, i] = v
            place = (states[None] == after[:, None]).all(-1).double().argmax(1)
            total[torch.arange(len(x)), place] += law[:, i, v]
    return total


def data_and_states(process):
    data = everything(process.vocab, process.length)
    return data, everything(symbols(process), process.length)


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


def radix(process):
    size, length = symbols(process), process.length
    return torch.tensor([size**i for i in reversed(range(length))])


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


@pytest.mark.parametrize("name", COUNTED)
def test_one_token_per_step_reproduces_the_table(name):
    """T7.4: all paths of the chain, started from the true law at t = 1."""
    process, p = build(name), table()
    exact = Table(name, process, p)
    data, states = data_and_states(process)
    law = exact.law(states, data, 1.0) @ p  # p(x_1)
    for n in (3, 2, 1):
        seen = law > 0
        back = transition(
            process,
            exact(states[seen], number(n / 3)),
            states[seen],
            n / 3,
            (n - 1) / 3,
        )
        law = law[seen] @ back
    place = data @ radix(process)
    torch.testing.assert_close(law[place], p, rtol=1e-9, atol=1e-12)
    assert float(law.sum()) == pytest.approx(1)


@pytest.mark.parametrize("size", [2, 5, 17])
def test_uniform_in_closed_form_is_the_product_of_its_matrices(size):
    """T7.7."""
    levels = 30
    process = build("d3pm", size, 1, matrix="uniform", levels=levels, beta_max=0.5)
    beta = torch.linspace(1e-4, 0.5, levels, dtype=torch.float64)
    kept = (1 - beta).cumprod(0)
    products = process._products(torch.zeros(1))
    one = torch.eye(size).double()
    for i in (1, 7, 30):
        closed = kept[i - 1] * one + (1 - kept[i - 1]) / size
        torch.testing.assert_close(products[i], closed, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("size", [3, 17])
def test_gaussian_matrices_are_the_papers(size):
    own = {"levels": 200, "beta_max": 4.0 if size == 3 else 0.2}
    process = build("d3pm", size, 1, **own)
    beta = torch.linspace(1e-4, own["beta_max"], 200, dtype=torch.float64)
    product = torch.eye(size).double()
    for i in range(200):
        product = product @ stepping(size, float(beta[i]))
    found = process._products(torch.zeros(1))[-1]
    torch.testing.assert_close(found, product, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.sum(0), torch.ones(size).double())


def test_a_d3pm_that_does_not_reach_its_prior_is_refused():
    """The error says how far the worst token still is, in total variation."""
    product = torch.eye(3).double()
    for beta in torch.linspace(1e-4, 0.8, 20, dtype=torch.float64):
        product = product @ stepping(3, float(beta))
    far = [float((row - 1 / 3).clamp(min=0).sum()) for row in product]
    assert max(far) > 0.05 > min(far)
    message = f"beta_max: must be larger: tokens are still {max(far):.2g} away"
    with pytest.raises(ConfigError, match=message):
        build("d3pm", 3, 2, levels=20, beta_max=0.8)


@pytest.mark.parametrize("mixing", ["mixture", "d3pm"])
def test_the_last_term_of_the_d3pm_bound_is_the_belief_alone(mixing):
    process = build("d3pm", mixing=mixing)
    x0, x = rows(20, 1).integers(3, (20, 3)), rows(20, 2).integers(3, (20, 3))
    q = Categorical(rows(20, 3).normal((20, 3, 3)).double())
    first = torch.full((20,), 1 / process.levels, dtype=torch.float64)
    told = -q.logits.log_softmax(-1).gather(-1, x0[..., None])[..., 0].sum(1)
    found = process.bound(q, x0, x, first) / process.levels
    torch.testing.assert_close(found, told)


def test_a_token_that_no_belief_leads_to_is_forgotten():
    """The step is then q(x_s | x_0) over the belief: x_t tells nothing."""
    process = build("d3pm", 17, 1, levels=1000, beta_min=0.001, beta_max=0.02)
    x = torch.tensor([[16]])  # in two steps from 0: exp(-2000), no number at all
    law = process.step(certain(x - 16, 17), x, number(2e-3), number(1e-3))
    expected = stepping(17, 0.001)[0]
    assert float(expected[1]) > 1e-7
    torch.testing.assert_close(law[0, 0], expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", SCHEDULES)
def test_survival_falls_from_one_to_zero_and_inverts(name):
    schedule, h = survivals.build({"name": name}), 1e-6
    ends = schedule(torch.tensor([0.0, 1.0], dtype=torch.float64)).alpha
    assert float(ends[0]) == pytest.approx(1, abs=1e-15) and float(ends[1]) == 0
    t = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    k, up, down = schedule(t), schedule(t + h), schedule(t - h)
    torch.testing.assert_close(
        k.dalpha, (up.alpha - down.alpha) / (2 * h), rtol=1e-6, atol=1e-9
    )
    assert bool((k.alpha.diff() < 0).all())
    torch.testing.assert_close(schedule.time(k.alpha), t, rtol=1e-9, atol=0)


def test_draws_are_float64_and_lose_no_rare_token():
    """A token of probability 4e-5 comes as often as it should."""
    n = 500_000
    weights = torch.tensor([0.5, 4e-5, 0.0, 0.5 - 4e-5], dtype=torch.float64)
    token = choose(weights.expand(1, n, 4), rows(1))
    counts = token[0].bincount(minlength=4)
    assert counts[2] == 0
    assert abs(int(counts[1]) - 20) < 5 * 20**0.5


SAMPLERS = {
    "ancestral": {"steps": 40, "grid": {"name": "uniform"}},
    "cached": {"steps": 40, "grid": {"name": "uniform"}},
    "first_hitting": {},
    "confident": {"steps": 3, "temperature": 4.5},
}


def walk(name, process, denoiser, n, seed=0, **own):
    sampler = samplers.build({"name": name, **SAMPLERS[name], **own})
    *_, x = sampler.trajectory(
        denoiser, process.prior((n, process.length), rows(n)), rows(n, seed)
    )
    return x


def frequencies(x, process):
    place = torch.tensor([process.vocab**i for i in reversed(range(process.length))])
    return (x @ place).bincount(minlength=process.vocab**process.length) / len(x)


@pytest.mark.parametrize("name", ["first_hitting", "ancestral", "cached"])
def test_masked_samplers_reproduce_the_table(name):
    """First-hitting exactly; ancestral steps within their bias, 40 steps."""
    n, p = 8000, table(2, 3, seed=4)
    process = build("mask", 2, 3)
    exact = Table("mask", process, p)
    found = frequencies(walk(name, process, exact, n), process)
    chance = 5 * (p * (1 - p) / n).sqrt()
    bias = 0 if name == "first_hitting" else 0.01
    assert bool(((found - p).abs() < chance + bias).all())


def test_first_hitting_takes_a_call_per_token_at_the_times_of_the_chain():
    """The k-th time is an order statistic: P(t_1 < u) = u^L on the linear schedule."""
    n, process = 4000, build("mask", 2, 4)
    seen = []

    class Watched(Table):
        def forward(self, x, t, **cond):
            seen.append(t)
            return super().forward(x, t)

    walk("first_hitting", process, Watched("mask", process, table(2, 4)), n)
    times = torch.stack(seen)
    assert times.shape == (4, n) and bool((times.diff(dim=0) <= 0).all())
    expected = torch.tensor([4 / 5, 3 / 5, 2 / 5, 1 / 5]).double()  # of uniform times
    torch.testing.assert_close(times.mean(1), expected, rtol=0, atol=4 * 0.2 / n**0.5)


def test_first_hitting_begins_where_the_process_does():
    """At t = 1/2, as `restore=` does; beside it lies a sample with nothing hidden."""
    n, process, times = 4000, build("mask", 2, 4), []
    process.span = (0.2, 0.5)

    class Unsure(Table):
        def forward(self, x, t, **cond):
            times.append(t)
            return Categorical(torch.zeros(len(x), 4, 2).double())

    x = torch.tensor([[2, 2, 1, 0], [1, 1, 1, 0]]).repeat(n // 2, 1)
    sampler = samplers.build({"name": "first_hitting"})
    *_, after = sampler.trajectory(Unsure("mask", process, table(2, 4)), x, rows(n))
    assert bool((after == x)[x < 2].all() and (after < 2).all())
    first = times[0][::2]  # max(1/5, u^(1/2) / 2)
    expected = 0.4**2 * 0.2 + (1 - 0.4**3) / 3
    assert float(first.mean()) == pytest.approx(expected, abs=5 * 0.1 / (n / 2) ** 0.5)
    assert all(0.2 <= float(t.min()) <= float(t.max()) <= 0.5 for t in times)


def test_a_cached_walk_is_the_ancestral_one_with_fewer_calls():
    process = build("mask", 2, 4)
    kept, plain = (Table("mask", process, table(2, 4)) for _ in range(2))
    own = {"steps": 200}
    one = walk("cached", process, kept, 3, **own)
    assert torch.equal(one, walk("ancestral", process, plain, 3, **own))
    assert plain.calls == 200 and kept.calls <= 3 * 4 + 1


def test_confidence_reveals_the_surest_first_and_leaves_nothing_hidden():
    process = build("mask", 2, 8)
    sure = torch.linspace(0.55, 0.99, 8).double()
    logits = torch.stack((sure.log(), (1 - sure).log()), -1)

    class Fixed(Table):
        def forward(self, x, t, **cond):
            return Categorical(logits.expand(len(x), 8, 2))

    known = Fixed("mask", process, table(2, 8))
    sampler = samplers.build({"name": "confident", "steps": 4, "temperature": 0.0})
    states = list(
        sampler.trajectory(known, process.prior((500, 8), rows(500)), rows(500))
    )
    hidden = [(x == process.mask).sum(1) for x in states]
    for k, left in enumerate(hidden, 1):
        assert bool(
            (left == math.floor(8 * math.cos(math.pi / 2 * k / 4) + 1e-9)).all()
        )
    # the first to appear is the one whose own draw was likeliest
    assert int((states[0] != process.mask).sum(0).argmax()) == 7


def test_chance_decides_the_order_as_far_as_its_temperature_says():
    """P(i is next) ~ p_i^(1 / T), T = temperature (1 - k / N): Gumbel's trick."""
    process, n = build("mask", 2, 8), 4000
    logits = torch.zeros(8, 2).double()
    logits[0, 1] = -1e3  # the first token has probability 1, the others 1/2

    class Fixed(Table):
        def forward(self, x, t, **cond):
            return Categorical(logits.expand(len(x), 8, 2))

    known = Fixed("mask", process, table(2, 8))
    node = {"name": "confident", "steps": 3, "temperature": 1.5}
    walked = samplers.build(node).trajectory(
        known, process.prior((n, 8), rows(n)), rows(n)
    )
    shown = next(iter(walked)) != process.mask  # T = 1, two tokens
    assert bool((shown.sum(1) == 2).all())
    expected = 1 / 4.5 + 7 * (0.5 / 4.5) * 1 / 4  # the first, or after one of 7
    error = 5 * (expected * (1 - expected) / n) ** 0.5
    assert float(shown[:, 0].double().mean()) == pytest.approx(expected, abs=error)


class Prompted(Table):
    """A table beside a prompt; it notes how many of its tokens it saw hidden."""

    def __init__(self, process, prompt, p):
        super().__init__("mask", process, p)
        self.prompt, self.seen, self.times = torch.tensor(prompt), [], []

    def forward(self, x, t, **cond):
        self.seen.append((x == self.process.vocab).sum(1))
        self.times.append(t)
        x = torch.where(self.prompt >= 0, self.prompt, x)
        return Categorical(super().forward(x, t).logits, given=self.prompt)


@pytest.mark.parametrize("steps", [1, 3, 4, 50])
def test_confidence_spends_its_steps_on_open_places(steps):
    """A prompt takes none, and a step without a hidden token has no call."""
    process = build("mask", 2, 6)
    known = Prompted(process, [-1, 1, -1, -1, 0, -1], table(2, 6))
    own = {"steps": steps, "temperature": 4.5}
    x = walk("confident", process, known, 40, **own)
    taken = min(steps, 4)
    left = [math.floor(4 * math.cos(math.pi / 2 * k / taken) + 1e-9) for k in (1, 2, 3)]
    left = [min(n, 4 - k) for k, n in enumerate(left, 1)][: taken - 1]
    assert [int(n.min()) for n in known.seen] == [6, *left]
    assert [int(n.max()) for n in known.seen] == [6, *left]
    assert known.calls == taken
    for n, t in zip(known.seen, known.times, strict=True):  # as many as hidden then
        torch.testing.assert_close(
            process.schedule(t).alpha, 1 - n / 6.0, check_dtype=False
        )
    assert bool((x[:, 1] == 1).all() and (x[:, 4] == 0).all() and (x < 2).all())


def test_confidence_grows_whatever_the_number_of_steps():
    """Steps beyond the tokens do not put off the end of chance."""
    process, n = build("mask", 2, 4), 400
    known = Prompted(process, [-1] * 4, table(2, 4))
    few = walk("confident", process, known, n, steps=4, temperature=4.5)
    assert torch.equal(few, walk("confident", process, known, n, steps=99))


def test_first_hitting_asks_for_open_places_alone():
    process = build("mask", 2, 6)
    known = Prompted(process, [-1, 1, -1, 0, 0, -1], table(2, 6))
    x = walk("first_hitting", process, known, 40)
    assert [n.unique().tolist() for n in known.seen] == [[6], [2], [1]]
    assert bool((x[:, 1] == 1).all() and (x < 2).all())
    sampler = samplers.build({"name": "first_hitting"})
    assert [s.tolist() for s in sampler.trajectory(known, x[:2], rows(2))] == [
        x[:2].tolist()
    ]


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_a_sample_does_not_depend_on_its_batch(name, sampler):
    process = build(name)
    if sampler != "ancestral" and name != "mask":
        return
    own = {"steps": 3} if name in COUNTED else {"steps": 20}
    own = own if sampler in ("ancestral", "cached") else {}
    node = {"name": sampler, **SAMPLERS[sampler], **own}
    exact, built = Table(name, process, table()), samplers.build(node)
    *_, whole = built.trajectory(exact, process.prior((5, 3), rows(5)), rows(5))
    alone = rows(5).of(torch.tensor([3]))
    *_, one = built.trajectory(exact, process.prior((1, 3), alone), alone)
    assert torch.equal(whole[3:], torch.cat((one, whole[4:])))
    assert whole.dtype == torch.int64 and int(whole.max()) < process.vocab


@pytest.mark.parametrize("name", EVERY)
def test_the_chain_ends_in_data_and_takes_what_the_belief_says(name):
    process = build(name)
    x = process.prior((50, 3), rows(50))
    assert x.shape == (50, 3) and x.dtype == torch.int64
    q = certain(torch.tensor([[0, 2, 1]]).expand(50, 3), 3)
    for how in ({}, {"final": "mode"}, {"kernel": "restart"}):
        t = number(1.0)
        got = process.reverse(q, x, t, number(0.0), rows(50), **how)
        assert torch.equal(got, q.logits.argmax(-1))


@pytest.mark.parametrize("how", [{"final": "mode"}, {"kernel": "restart"}])
def test_visible_tokens_stay_whatever_the_belief(how):
    process, x = build("mask"), torch.tensor([[3, 1, 3]])
    q = certain(torch.tensor([[0, 0, 0]]), 3)
    got = process.reverse(q, x, number(0.5), number(0.0), rows(1), **how)
    assert got.tolist() == [[0, 1, 0]]


def test_only_hidden_tokens_count_whatever_the_belief():
    """An unsure belief about visible tokens changes neither bound nor decoder."""
    process, x0 = build("mask"), torch.tensor([[2, 1, 0]])
    x, t = torch.tensor([[3, 1, 3]]), number(0.4).expand(1)
    q = Categorical(rows(1).normal((1, 3, 3)).double())
    surprise = float(q.nll(x0)[0, [0, 2]].sum())
    assert float(process.decoder(q, x0, x)) == pytest.approx(surprise)
    low, high = process.span
    assert float(process.bound(q, x0, x, t)) == pytest.approx(
        surprise / 0.4 * (high - low)
    )


def test_the_time_at_which_a_share_is_hidden():
    share = torch.tensor([0.0, 0.25, 0.5, 1.0], dtype=torch.float64)
    for name in SCHEDULES:
        process = build("mask", schedule={"name": name})
        t = process.instant(share)
        known = share.clamp(min=1e-3 if name == "linear" else 0)
        torch.testing.assert_close(1 - process.schedule(t).alpha[1:], known[1:])
        assert float(t[0]) == process.span[0]
    assert build("mask_count", 3, 4).instant(share).tolist() == [0.25, 0.25, 0.5, 1]


def test_the_place_of_an_edit_has_its_probability():
    """One step of `edit`: positions in proportion to their doubt."""
    process, n = build("edit", 3, 3), 60_000
    doubt = torch.tensor([0.9, 0.5, 0.2], dtype=torch.float64)
    p = torch.stack((1 - doubt, doubt / 4, 3 * doubt / 4), -1)
    q = Categorical(p.log().expand(n, 3, 3))
    x = torch.zeros(n, 3, dtype=torch.int64)
    after = process.reverse(q, x, number(2 / 3), number(1 / 3), rows(n))
    assert bool(((after != 0).sum(1) == 1).all())
    found = torch.stack([(after == v).double().mean(0) for v in (1, 2)], -1)
    law = p[:, 1:] / doubt.sum()
    assert bool(((found - law).abs() < 5 * (law * (1 - law) / n).sqrt()).all())


@pytest.mark.parametrize("name", EVERY)
def test_only_the_last_step_takes_the_mode(name):
    process, (t, s) = build(name), STEPS[name]
    clean = torch.tensor([[2, 0, 1]]).expand(200, 3)
    x = process.corrupt(clean, number(t), process.noise(clean, rows(200)))
    q = Table(name, process, table())(x, number(t))
    drawn, mode = (
        process.reverse(q, x, number(t), number(s), rows(200), final=final)
        for final in ("draw", "mode")
    )
    assert torch.equal(mode, drawn)


def test_masks_enlarge_the_vocabulary_of_the_state_alone():
    data = Spec((4,), "tokens", vocab=5)
    for name in EVERY:
        process = build(name, 5, 4, **({"levels": 200} if name == "d3pm" else {}))
        more = isinstance(process, Masking)
        assert process.state(data).vocab == 5 + more
        assert isinstance(process, Tokens) and (
            isinstance(process, Counted) == (name in COUNTED)
        )
