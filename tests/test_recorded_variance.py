"""The reverse variance that training records."""

import pytest
import torch
from estimated import left
from oracles import (
    Known,
    NormalData,
    gaussian,
    number,
    rows,
)
from tiny import Setup

from diffusion_cli.couplings import couplings
from diffusion_cli.guidance import guidances
from diffusion_cli.objectives import objectives
from diffusion_cli.variance import recorded


def denoise(weight="snr_plus_one", time="uniform"):
    node = {"name": "denoise", "weight": {"name": weight}, "time": {"name": time}}
    return objectives.build(node, coupling=couplings.build({"name": "independent"}))


def trained(objective, model, s2, steps, batch=512, size=2):
    """What training does with the errors of a model that does not change."""
    for step in range(steps):
        rng = rows(batch, 1).at(step)
        x0 = s2**0.5 * rng.child("data").normal((batch, size), torch.float64)
        losses = objective(model, x0, rng)
        objective.observe(model.process, objective.times, losses)
    return objective.record


@pytest.mark.parametrize(
    ("name", "weight"), [("vp", "simple"), ("linear", "edm"), ("straight", "velocity")]
)
def test_training_records_the_errors_of_the_mean(name, weight):
    """(SNR + 1) s2 b^2 / v_t in every cell, off by as much as its count allows."""
    process, s2 = gaussian(name), 0.25
    record = trained(denoise(weight), NormalData(process, s2), s2, 100)
    count, times, errors = record.cells
    assert bool((count > 0).all()) and float(record.seen) == 100 * 512
    times = times / count
    assert bool(((times * 100).ceil() == torch.arange(1, 101)).all())
    k = process.schedule(times)
    expected = left(process, s2, times) * (1 + (k.alpha / k.sigma) ** 2)
    # a mean of two squared normals has the relative variance 1; weights that fall as
    # n^(log 2 / 0.1 - 1) amount to 1.89 times their sum of samples
    scores = (errors / count / expected - 1) * (1.89 * count).sqrt()
    assert float(scores.abs().max()) < 4.5
    assert 0.8 < float(scores.square().mean().sqrt()) < 1.2
    spread = recorded(process, record.cells)
    close = {"rtol": 0.5, "atol": 0.0}
    torch.testing.assert_close(spread(times), left(process, s2, times), **close)


def test_what_was_recorded_is_a_source_of_variance():
    process = gaussian("vp")
    data = NormalData(process, 0.25)
    record = trained(denoise(), data, 0.25, 50)
    context = Known(buffers={"record.cells": record.cells})
    node = {"name": "analytic", "source": "loss"}
    q = guidances.build(node, denoiser=data, context=context)(
        torch.zeros(1, 2), number(0.4)
    )
    assert float(q.var) == pytest.approx(
        float(left(process, 0.25, number(0.4))), rel=0.3
    )


def test_the_record_forgets():
    process = gaussian("vp")
    objective = denoise()
    old = trained(objective, NormalData(process, 4.0), 4.0, 20).cells.clone()
    trained(objective, NormalData(process, 0.01), 0.01, 60)
    count, _, errors = objective.record.cells
    mean = float(errors.sum() / count.sum())
    assert mean < 0.2 * float(old[2].sum() / old[0].sum())


def test_only_squared_errors_on_an_affine_path_are_recorded():
    process = gaussian("vp")
    record = trained(denoise(), NormalData(process, 0.25, spread=True), 0.25, 2)
    assert not record.cells.any() and not record.seen

    class Other:
        """No path that has a signal-to-noise ratio."""

    record.update(Other(), torch.rand(4), torch.rand(4))
    assert not record.cells.any()


@pytest.mark.parametrize("micro_batch", [8, 4, 2])
def test_the_record_does_not_depend_on_the_micro_batch(micro_batch):
    cells = []
    for size in (None, micro_batch):
        setup = Setup(micro_batch=size, batch=16)
        for module in setup.state.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        cells.append(setup.train(3).objective.record.cells)
    assert float(cells[0][0].sum()) > 0
    torch.testing.assert_close(cells[1], cells[0], rtol=1e-4, atol=1e-5)
