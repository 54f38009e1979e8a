"""Samplers of masked tokens against the table (T7.4, T7.7)."""

import math

import pytest
import torch
from oracles import rows
from token_oracles import (
    Table,
    build,
    table,
)
from token_tables import SAMPLERS

from diffusion_cli.core import Categorical
from diffusion_cli.samplers import samplers


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


def test_confidence_shows_a_token_at_every_step():
    """8 cos(pi / 8) = 7.39: the curve alone would show nothing in the second of 8."""
    process = build("mask", 2, 8)
    known = Prompted(process, [-1] * 8, table(2, 8))
    walk("confident", process, known, 40, steps=8, temperature=4.5)
    seen = [n.unique().tolist() for n in known.seen]
    assert seen == [[8], [7], [6], [5], [4], [3], [2], [1]]


def test_confidence_grows_whatever_the_number_of_steps():
    """Steps beyond the tokens do not put off the end of chance."""
    process, n = build("mask", 2, 4), 400
    known = Prompted(process, [-1] * 4, table(2, 4))
    few = walk("confident", process, known, n, steps=4, temperature=4.5)
    assert torch.equal(few, walk("confident", process, known, n, steps=99))


def test_first_hitting_shows_any_hidden_place():
    process, n = build("mask", 2, 4), 4000
    known = Prompted(process, [-1] * 4, table(2, 4))
    walked = samplers.build({"name": "first_hitting"}).trajectory(
        known, process.prior((n, 4), rows(n)), rows(n)
    )
    shown = (next(iter(walked)) != process.mask).double().mean(0)
    error = 5 * (0.25 * 0.75 / n) ** 0.5
    assert float((shown - 0.25).abs().max()) < error


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
