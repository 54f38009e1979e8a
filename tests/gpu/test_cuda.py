"""Training on a CUDA device: precision, memory, compilation, and no waiting."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import Setup, outcome, same, snapshot, tiny
from torch import Tensor

from diffusion_cli import assemble
from diffusion_cli import device as devices
from diffusion_cli.commands import train
from diffusion_cli.core import Spec
from diffusion_cli.latch import NonFinite
from diffusion_cli.loading import MicroBatch
from diffusion_cli.settings import TrainerSettings
from diffusion_cli.trainer import Trainer

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda:0")
UNET: dict[str, Any] = {
    "dataset": {"name": "digits"},
    "network": {"name": "unet", "channels": 32, "multipliers": [1, 2], "dropout": 0.0},
}


def test_an_overflow_leaves_average_rate_and_step() -> None:
    setup = Setup(device=CUDA, precision="fp16", warmup=5, ema=[4.0])
    for _ in setup.trainer.run(setup.state, setup.batches(2)):
        pass
    state, scaler = setup.state, setup.state.scaler
    assert scaler is not None
    scaler.update(2.0**20)

    def overflow(g: Tensor) -> Tensor:
        return g * math.inf if scaler.get_scale() > 2.0**19 else g

    hook = next(state.model.parameters()).register_hook(overflow)
    before, rate = snapshot(state), setup.trainer.rate(state, state.step)
    batch = next(list(step) for step in setup.batches(3))
    setup.trainer._step(state, batch)  # one attempt, which overflows
    scaler.update()
    assert scaler.get_scale() == 2.0**19 and state.step == 2
    assert state.optimizer.param_groups[0]["lr"] == rate
    assert same(before, snapshot(state))
    hook.remove()
    progress = list(setup.trainer.run(state, [batch]))
    assert state.step == 3 and progress[0].lr == rate
    assert not same(before, snapshot(state))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_every_precision_learns(precision: str) -> None:
    setup = Setup(device=CUDA, parts=UNET, precision=precision, steps=60, batch=64)
    losses = [
        progress.losses.mean().item()
        for progress in setup.trainer.run(setup.state, setup.batches(60))
    ]
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])
    assert all(p.dtype == torch.float32 for p in setup.state.model.parameters())


def test_a_step_does_not_wait_for_the_device() -> None:
    setup = Setup(device=CUDA, parts=UNET, precision="bf16", steps=8, batch=32)
    steps = setup.trainer.run(setup.state, setup.batches(8))
    next(steps)
    next(steps)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(4):
            next(steps)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_latch_holds_until_the_host_looks() -> None:
    before = snapshot(Setup(device=CUDA).train(2))
    setup = Setup(device=CUDA, ema=[])
    weight = next(setup.state.model.parameters())
    for progress in setup.trainer.run(setup.state, setup.batches(6)):
        if progress.step == 2:
            hook = weight.register_hook(lambda g: g * math.nan)
        if progress.step == 3:
            hook.remove()
    after = snapshot(setup.state)
    assert all(torch.equal(after[name], before[name]) for name in after)
    with pytest.raises(NonFinite, match="NONFINITE step 3"):
        setup.trainer.check(setup.state)


def peak(recompute: str) -> int:
    torch.cuda.empty_cache()
    setup = Setup(
        device=CUDA, parts=UNET, recompute=recompute, precision="bf16", batch=512
    )
    torch.cuda.reset_peak_memory_stats()
    setup.train(2)
    return torch.cuda.max_memory_allocated()


def test_recomputing_lowers_peak_memory() -> None:
    assert peak("blocks") < 0.8 * peak("none")


@pytest.mark.parametrize("recompute", ["none", "blocks"])
def test_compiled_is_eager(recompute: str) -> None:
    losses = {}
    for compiled in (False, True):
        setup = Setup(
            device=CUDA, parts=UNET, compile=compiled, recompute=recompute, batch=32
        )
        names = set(setup.state.model.state_dict())
        steps = setup.trainer.run(setup.state, setup.batches(4))
        losses[compiled] = torch.stack([progress.losses for progress in steps])
        assert not any("_orig_mod" in name for name in names)
    torch.testing.assert_close(losses[True], losses[False], rtol=2e-3, atol=2e-3)


def test_a_resumed_run_is_exact_when_asked(tmp_path: Path) -> None:
    own: dict[str, Any] = {
        **UNET,
        "device": "cuda",
        "trainer": {"deterministic": True, "precision": "bf16"},
    }
    train.run(tiny(out=str(tmp_path / "whole"), **own), [])
    for steps in (5, 12):
        changed = own | {"trainer": own["trainer"] | {"steps": steps}}
        train.run(tiny(out=str(tmp_path / "parts"), **changed), [])
    devices.tune(CUDA, deterministic=False)
    whole, parts = outcome(tmp_path / "whole"), outcome(tmp_path / "parts")
    assert whole[0] == parts[0]


@pytest.mark.parametrize("compiled", [False, True])
def test_speed_of_ddpm_cifar(
    compiled: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """The exact DDPM network on random images: prints img/s and memory."""
    batch, spec = 128, Spec((3, 32, 32))
    devices.tune(CUDA, deterministic=False)
    values = tiny(network={"name": "unet"}, optimizer={"name": "adam"})
    parts = assemble.parts(values, spec)
    settings = TrainerSettings(
        steps=1000, batch=batch, precision="bf16", compile=compiled
    )
    trainer = Trainer(settings, optimizer=values["optimizer"], seed=0, device=CUDA)
    state = trainer.start(parts.model, parts.objective)
    rows = torch.arange(batch, device=CUDA)
    x0 = torch.rand(batch, 3, 32, 32, device=CUDA) * 2 - 1
    images = [MicroBatch(x0, {}, rows)]
    warm, timed = 20, 100
    for progress in trainer.run(state, [images] * (warm + timed)):
        if progress.step == warm:
            torch.cuda.synchronize()
            begun = time.perf_counter()
    torch.cuda.synchronize()
    rate = timed * batch / (time.perf_counter() - begun)
    trainer.check(state)
    with capsys.disabled():
        memory = torch.cuda.max_memory_allocated() / 2**30
        print(f"\nddpm_cifar compile={compiled}: {rate:.0f} img/s, {memory:.1f} GiB")
    assert rate > 500
