"""What is not finite or does not fit: found at once, and nothing is spoilt."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tiny import Setup, same, snapshot
from torch import Tensor

from diffusion_cli import failpoints
from diffusion_cli.errors import NumericsError, OutOfMemory
from diffusion_cli.latch import NonFinite


@pytest.fixture(autouse=True)
def disarm() -> Iterator[None]:
    yield
    failpoints.arm(None)


@pytest.mark.parametrize("fault", ["step.loss@3:nan", "step.grad@3:nan"])
def test_a_bad_step_changes_nothing(fault: str) -> None:
    before = snapshot(Setup().train(2))
    setup = Setup()
    failpoints.arm(fault)
    with pytest.raises(NonFinite, match="NONFINITE step 3: loss=") as caught:
        setup.train()
    assert caught.value.exit_code == 7 and caught.value.step == 3
    assert setup.state.step == 2 and same(before, snapshot(setup.state))
    assert caught.value.rows == (list(range(8)) if "loss" in fault else [])


def test_nothing_moves_before_the_host_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: the latch is read only after three more steps."""
    before = snapshot(Setup().train(2))
    setup = Setup(ema=[])
    monkeypatch.setattr(setup.trainer, "check", lambda state: None)
    failpoints.arm("step.loss@3:nan")
    setup.train(6)
    after = snapshot(setup.state)
    assert all(torch.equal(after[name], before[name]) for name in after)
    monkeypatch.undo()
    with pytest.raises(NonFinite) as caught:
        setup.trainer.check(setup.state)
    assert caught.value.step == 3


@pytest.mark.parametrize("micro_batch", [8, 2])
@pytest.mark.parametrize("scaler", [False, True])
def test_some_bad_steps_may_be_skipped(scaler: bool, micro_batch: int) -> None:
    """D2: nothing moves but the count, and the step after it is as if it were first."""
    setup = Setup(skip_nonfinite=3, ema=[1.0, 3.0], micro_batch=micro_batch)
    if scaler:
        setup.state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**7)
    real, bad = setup.state.objective.forward, {1, 2, 4}

    def forward(*args: Any, **more: Any) -> Tensor:
        loss: Tensor = real(*args, **more)
        return loss * math.nan if setup.state.step in bad else loss

    setup.state.objective.forward = forward  # type: ignore[method-assign]
    before, moved = snapshot(setup.state), []
    for progress in setup.trainer.run(setup.state, setup.batches(6)):
        after = snapshot(setup.state)
        if not same(before, after):
            moved.append(progress.step - 1)
        assert all(value.isfinite().all() for value in after.values())
        before = after
    assert moved == [0, 3, 5]
    assert setup.trainer.check(setup.state) == setup.state.plain()["skipped"] == 3
    if scaler:
        assert setup.state.scaler and setup.state.scaler.get_scale() == 2.0**7
    bad.add(6)
    with pytest.raises(NonFinite, match="step 7"):
        setup.train(8)
    assert same(before, snapshot(setup.state))


def test_a_scaler_takes_no_step_whose_loss_is_infinite() -> None:
    """The gradient of max(loss, 0) + inf is finite."""
    setup = Setup(skip_nonfinite=1)
    setup.state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**7)
    real = setup.state.objective.forward
    setup.state.objective.forward = lambda *a, **b: real(*a, **b) + math.inf  # type: ignore[method-assign]
    before = snapshot(setup.state)
    setup.train(1)
    assert same(before, snapshot(setup.state))


def test_an_overflow_repeats_the_step_at_half_the_scale() -> None:
    """Fault D3."""
    plain, scaled = Setup(), Setup()
    scaled.state.scaler = scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14)

    def overflow(g: Tensor) -> Tensor:
        return g * math.inf if scaler.get_scale() > 2.0**10 else g

    next(scaled.state.model.parameters()).register_hook(overflow)
    plain.train(2)
    steps = [p.step for p in scaled.trainer.run(scaled.state, scaled.batches(2))]
    assert steps == [1, 2] and scaled.state.step == 2
    assert scaler.get_scale() == 2.0**10
    assert same(snapshot(plain.state), snapshot(scaled.state))


def test_an_overflow_at_every_scale_is_an_error() -> None:
    setup = Setup()
    before = snapshot(setup.state)
    setup.state.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    failpoints.arm("step.grad:nan")
    with pytest.raises(NumericsError, match="gradients overflow fp16"):
        setup.train()
    after = snapshot(setup.state)
    assert setup.state.step == 0
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    "problem",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_out_of_memory_says_what_fits(
    problem: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = Setup(micro_batch=8)

    def full(*args: Any, **kwargs: Any) -> None:
        raise problem

    monkeypatch.setattr(setup.state.objective, "forward", full)
    with pytest.raises(OutOfMemory, match="micro_batch=8: out of memory") as caught:
        setup.train()
    assert caught.value.hint == "trainer.micro_batch=4 keeps batch=8"
    assert caught.value.exit_code == 8


def test_other_errors_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    setup = Setup()

    def wrong(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(setup.state.objective, "forward", wrong)
    with pytest.raises(RuntimeError, match="shapes differ"):
        setup.train()
