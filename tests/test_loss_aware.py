"""The time law that follows the loss: unbiased, reproducible, whatever the split."""

from pathlib import Path

import pytest
import torch
from oracles import gaussian, rows
from tiny import Setup, interrupted, outcome, place, snapshot, tiny

from diffusion_cli import checkpoint
from diffusion_cli.commands import train
from diffusion_cli.objectives import times

__all__ = ["place"]  # a fixture
PROCESSES = {
    "vp": gaussian("vp"),
    "karras": gaussian("karras"),
    "discrete": gaussian("linear", levels=1000),
    "few": gaussian("cosine", levels=7),
    "uneven": gaussian("linear", levels=33),
}


def law(cells=10, **own):
    return times.build({"name": "loss_aware", "cells": cells, **own})


def grid(process, count=4000):
    """All times of a discrete process, or the midpoints of a fine grid."""
    low, high = process.span
    if process.levels:
        return torch.arange(1, process.levels + 1).double() / process.levels
    return low + (torch.arange(count).double() + 0.5) / count * (high - low)


def filled(process, slope=2.0, **own):
    """A law that has seen losses exp(slope t) everywhere."""
    one = law(**own)
    t = grid(process).repeat_interleave(10)
    t = torch.cat([t] * (1 + 200 // len(t)))
    one.observe(process, t, (slope * t).exp())
    return one


@pytest.mark.parametrize("name", PROCESSES)
def test_it_is_uniform_until_every_cell_has_its_history(name):
    process, one = PROCESSES[name], law()
    uniform = times.build({"name": "uniform"})(process, rows(500))
    torch.testing.assert_close(one(process, rows(500)), uniform, rtol=0, atol=1e-12)
    assert torch.equal(one.correction(uniform), torch.ones(500).double())
    t = grid(process).repeat(10)
    t = t[t < 0.85]  # the last cells are missing
    one.observe(process, t, (3 * t).exp())
    torch.testing.assert_close(one(process, rows(500)), uniform, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", PROCESSES)
def test_probabilities_follow_the_root_mean_square_of_the_losses(name):
    """iDDPM eq. 18 with its mixture: expected frequencies of cells, by their edges."""
    process = PROCESSES[name]
    one, n = law(cells=5, history=4, mix=0.1), 50_000
    t = grid(process)
    edges = torch.tensor([-(-i * len(t) // 5) for i in range(1, 5)])  # in whole times
    cell = torch.bucketize(torch.arange(len(t)), edges, right=True)
    losses = torch.tensor([1.0, 2.0, 0.0, 4.0, 3.0])
    for turn in range(4):
        one.observe(process, t, losses[cell] * (1 if turn % 2 else -1))
    mass = torch.bincount(cell, minlength=5) / len(t)
    expected = 0.9 * mass * losses / (mass * losses).sum() + 0.1 * mass
    drawn = one(process, rows(n))
    between = (t[1:] + t[:-1]) / 2
    near = torch.searchsorted(between, drawn)
    got = torch.bincount(cell[near], minlength=5) / n
    assert (got - expected).abs().max() < 4 * 0.5 / n**0.5 + 1e-3
    ratio = (mass / expected)[cell]
    torch.testing.assert_close(one.correction(t), ratio.double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", PROCESSES)
def test_the_corrected_loss_is_unbiased(name):
    """E_p[w f] = E_uniform[f], exactly by the law's own quantiles."""
    process = PROCESSES[name]
    one = filled(process)
    u = (torch.arange(200_000) + 0.5).double() / 200_000
    t = one.quantile(process, u)
    weight = one.correction(t)
    assert float(weight.max() / weight.min()) > 2  # the law has a preference
    for f in (torch.ones_like, lambda t: t, lambda t: (3 * t).exp()):
        got, uniform = (weight * f(t)).mean(), f(grid(process)).mean()
        assert float(got) == pytest.approx(float(uniform), rel=2e-4)


def test_it_lowers_the_variance_of_the_loss_it_has_seen():
    process = PROCESSES["vp"]
    one, uniform = filled(process, slope=4.0, cells=50), law()
    loss = [
        (4 * t).exp() * one_.correction(t)
        for one_ in (one, uniform)
        for t in (one_(process, rows(20_000)),)
    ]
    assert float(loss[0].std()) < 0.1 * float(loss[1].std())


def test_a_cell_keeps_the_last_losses_of_a_step_in_the_order_of_its_samples():
    """What a loop over the samples would keep, however many fall into one cell."""
    process, one = PROCESSES["discrete"], law(cells=4, history=3)
    kept = [[] for _ in range(4)]
    for step in range(5):
        cell = rows(20, step).integers(4, (20, 1))[:, 0]
        cell[cell == 3] = 0 if step % 2 else 3
        losses = rows(20, step + 9).normal((20,))
        one.observe(process, (250 * cell + 100).double() / 1000, losses)
        for index, value in zip(cell.tolist(), losses.tolist(), strict=True):
            kept[index].append(value)
    for index in range(4):
        assert sorted(kept[index][-3:]) == sorted(one.losses[index].tolist())
        assert one.seen[index] == len(kept[index])


def test_losses_that_are_not_finite_are_not_remembered():
    process, one = PROCESSES["few"], filled(PROCESSES["few"])
    before = one.losses.clone()
    bad = torch.tensor([float("nan"), float("inf")])
    one.observe(process, torch.tensor([1 / 7, 1.0]).double(), bad)
    assert torch.equal(one.losses, before)
    assert one(process, rows(50)).isfinite().all()


def test_losses_that_are_all_zero_leave_the_law_uniform():
    process, one = PROCESSES["vp"], law()
    t = grid(process)
    one.observe(process, t, torch.zeros_like(t))
    drawn = one(process, rows(100))
    uniform = times.build({"name": "uniform"})(process, rows(100))
    torch.testing.assert_close(drawn, uniform)
    torch.testing.assert_close(one.correction(t), torch.ones_like(t))


STILL = {"name": "mlp", "width": 16, "depth": 1}  # no dropout, which knows its batch
VLB = {
    "parametrisation": {"name": "learned", "mean": {"name": "eps"}},
    "objective": {
        "name": "vlb",
        "time": {"name": "loss_aware", "cells": 4, "history": 3},
    },
}


@pytest.mark.usefixtures("place")
def test_a_resumed_run_is_the_uninterrupted_one():
    train.run(tiny(out="whole", **VLB), [])
    for step in (3, 8):
        assert interrupted(Path("parts"), step, **VLB) == 143
    train.run(tiny(out="parts", **VLB), [])
    assert outcome(Path("parts")) == outcome(Path("whole"))
    found = checkpoint.load("parts").tensors("objective")
    assert int(found["time.seen"].sum()) == 12 * 8  # steps and samples
    assert (found["time.losses"] != 0).all()


def test_history_does_not_depend_on_the_micro_batches():
    whole, split = (
        snapshot(Setup(parts=VLB | {"network": STILL}, micro_batch=m).train(6))
        for m in (None, 2)
    )
    for name in ("objective/time.losses", "objective/time.seen"):
        torch.testing.assert_close(whole[name], split[name], rtol=1e-4, atol=1e-4)
    assert int(whole["objective/time.seen"].sum()) == 48
