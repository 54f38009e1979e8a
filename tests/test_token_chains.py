"""What a step of tokens keeps, draws and forgets (T7.4, T7.7)."""

import pytest
import torch
from oracles import number, rows
from token_oracles import (
    Table,
    build,
    certain,
    stepping,
    table,
)
from token_tables import (
    COUNTED,
    EVERY,
    SAMPLERS,
    STEPS,
    data_and_states,
    radix,
    transition,
)

from diffusion_cli.core import Categorical, Spec
from diffusion_cli.errors import ConfigError
from diffusion_cli.processes.counted import Counted
from diffusion_cli.processes.tokens import (
    Masking,
    Tokens,
    choose,
    survivals,
)
from diffusion_cli.samplers import samplers

SCHEDULES = survivals.names()


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


@pytest.mark.parametrize("beta", [0.0, -1e-3, 0.5])
def test_the_first_beta_of_d3pm_is_positive_and_no_larger_than_the_last(beta):
    with pytest.raises(ConfigError, match=r"beta_min: must be in \(0, beta_max\]"):
        build("d3pm", 3, 2, levels=20, beta_min=beta, beta_max=0.4)


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


def test_one_token_cannot_be_edited():
    with pytest.raises(ConfigError, match="there is only one"):
        build("edit", vocab=1)


def test_masks_enlarge_the_vocabulary_of_the_state_alone():
    data = Spec((4,), "tokens", vocab=5)
    for name in EVERY:
        process = build(name, 5, 4, **({"levels": 200} if name == "d3pm" else {}))
        more = isinstance(process, Masking)
        assert process.state(data).vocab == 5 + more
        assert isinstance(process, Tokens) and (
            isinstance(process, Counted) == (name in COUNTED)
        )
