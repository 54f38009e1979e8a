"""dcli's training step, and its parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from diffusion_cli import assemble
from diffusion_cli import device as devices
from diffusion_cli.core import Spec
from diffusion_cli.loading import MicroBatch
from diffusion_cli.rng import Rng
from diffusion_cli.settings import TrainerSettings
from diffusion_cli.state import State
from diffusion_cli.trainer import Trainer
from subjects.memory import KEPT, MOST, Peak, kept

Once = Callable[[], dict[str, float] | None]
IMAGE = Spec((3, 32, 32))


def composed(words: list[str]) -> dict[str, Any]:
    """The checked config of a training command."""
    from hydra import compose, initialize_config_dir

    from diffusion_cli import config

    with initialize_config_dir(str(config.folder()), version_base=None):
        return config.check(config.plain(compose("train", overrides=words)))


def parts(words: list[str]) -> assemble.Parts:
    """Model, objective and sampler of a training command."""
    return assemble.parts(composed(words), IMAGE)


def prepared(words: list[str], spec: Spec = IMAGE) -> tuple[Trainer, State]:
    """A trainer and its state, as `dcli train` makes them."""
    return built(composed(words), spec)


def built(values: dict[str, Any], spec: Spec = IMAGE) -> tuple[Trainer, State]:
    """The same from a config."""
    device = devices.choose(values["device"])
    devices.tune(device, deterministic=False)
    own = values["trainer"]
    own["precision"] = devices.precision(device, own["precision"])
    made = assemble.parts(values, spec)
    trainer = Trainer(
        TrainerSettings(**own), optimizer=values["optimizer"], seed=0, device=device
    )
    return trainer, trainer.start(made.model, made.objective)


def batches(trainer: Trainer, spec: Spec = IMAGE) -> Iterator[list[MicroBatch]]:
    """The same images without end, on the device."""
    rows = torch.arange(trainer.settings.batch, device=trainer.device)
    x0 = torch.rand(len(rows), *spec.shape, device=trainer.device) * 2 - 1
    while True:
        yield [MicroBatch(x0, {}, rows)]


def step(words: list[str]) -> Once:
    """A step of `dcli train`: loss, gradients, clipping, optimiser, average."""
    trainer, state = prepared(words)
    steps = trainer.run(state, batches(trainer))

    def once() -> None:
        next(steps)

    return once


def memory(words: list[str]) -> Once:
    """A step, and the megabytes it keeps for each image."""
    trainer, state = prepared(words)
    (micro,) = next(batches(trainer))
    rng = Rng(0, micro.rows)

    def loss() -> Tensor:
        return state.objective(state.model, micro.x0, rng).sum()

    size = kept(loss, state.model.parameters()) / len(micro.x0)
    steps = trainer.run(state, batches(trainer))

    def once() -> dict[str, float]:
        next(steps)
        return {KEPT: size}

    return once


def most(words: list[str]) -> Once:
    """A step, and the megabytes that it and all before it needed at most."""
    values = composed(words)
    before = Peak()
    trainer, state = built(values)
    steps = trainer.run(state, batches(trainer))

    def once() -> dict[str, float]:
        next(steps)
        return {MOST: before.megabytes()}

    return once


def tail(words: list[str]) -> Once:
    """Optimiser and average of weights alone."""
    return closing(prepared(words)[1])


def closing(state: State) -> Once:
    """What a step of this state does once it has its gradients."""
    for parameter in state.model.parameters():
        parameter.grad = 1e-3 * torch.randn_like(parameter)
    state.optimizer.found_inf = state.latch.closed  # type: ignore[attr-defined]

    def once() -> None:
        state.optimizer.step()
        for average in state.averages:
            average.update(state.step)
        state.step += 1

    return once


def work(words: list[str]) -> Once:
    """GFLOP of one training step, counted; it takes no time."""
    trainer, state = prepared(words)
    with FlopCounterMode(display=False) as counter:
        next(trainer.run(state, batches(trainer)))
    return lambda: {"gflop": counter.get_total_flops() / 1e9}


def peak(batch: int = 8, bf16: bool = False) -> Once:
    """GFLOP per second of this machine's convolutions, forward and backward.

    The best of the two shapes that most of the network's work has.
    """
    shapes = ((128, 32), (256, 16))
    layers = [nn.Conv2d(c, c, 3, padding=1, bias=False) for c, _ in shapes]
    inputs = [torch.randn(batch, c, n, n, requires_grad=True) for c, n in shapes]

    def once() -> dict[str, float]:
        import time

        best = 0.0
        for layer, x, (c, n) in zip(layers, inputs, shapes, strict=True):
            for _ in range(3):
                begun = time.process_time()
                with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                    out = layer(x)
                out.sum().backward()
                took = time.process_time() - begun
                best = max(best, 3 * 2 * 9 * c * c * n * n * batch / took / 1e9)
        return {"gflops": best}

    return once
