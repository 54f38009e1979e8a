"""Training: accumulation, clipping, the update, averaging."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from diffusion_cli import failpoints
from diffusion_cli.denoiser import Model
from diffusion_cli.device import attention, autocast, compilation, memory
from diffusion_cli.ema import Average
from diffusion_cli.errors import ConfigError, NumericsError
from diffusion_cli.latch import Latch
from diffusion_cli.loading import MicroBatch
from diffusion_cli.objectives import Objective
from diffusion_cli.optimizers import optimizers
from diffusion_cli.optimizers.tensorwise import decay_groups
from diffusion_cli.registry import Node, near
from diffusion_cli.rng import Rng
from diffusion_cli.settings import TrainerSettings
from diffusion_cli.state import State
from diffusion_cli.world import Alone, World


class Progress(NamedTuple):
    """One step, on the device: whoever reads a value waits for it."""

    step: int  # steps done
    losses: Tensor  # (B,)
    times: Tensor  # (B,), NaN where the objective names none
    grad_norm: Tensor  # before clipping, ()
    lr: float


class Trainer:
    """Minimises an objective, step by step.

    Args:
        settings: How long, how large, how precisely; `precision` is resolved.
        optimizer: Node of the optimiser.
        seed: Everything random follows from it.
        device: Where to train.
        trainable: Glob over parameter names; the rest is frozen.
        world: The processes that share every batch.
    """

    def __init__(
        self,
        settings: TrainerSettings,
        *,
        optimizer: Node,
        seed: int,
        device: torch.device,
        trainable: str | None = None,
        world: World | None = None,
    ) -> None:
        self.settings, self.node, self.seed = settings, optimizer, seed
        self.device, self.trainable = device, trainable
        self.world = world or Alone()
        self.share = settings.batch // self.world.size  # rows of this rank
        self.micro_batch = settings.micro_batch or self.share

    def start(self, model: Model, objective: Objective) -> State:
        """Everything that changes while training, as it is before the first step."""
        settings = self.settings
        if settings.precision == "auto":
            raise ValueError("precision: must be resolved, got 'auto'")
        if self.trainable is not None:
            freeze(model, self.trainable)
        model.around = autocast(self.device, settings.precision)
        model.network.recompute = settings.recompute
        model.onto(self.device)
        objective.to(self.device)
        if settings.compile:
            model.network.compile()  # in place: names of parameters stay clean
        named = {n: p for n, p in model.named_parameters() if p.requires_grad}
        groups = decay_groups(nn.ModuleList([model, objective]))
        return State(
            model=model,
            objective=objective,
            optimizer=optimizers.build(self.node, params=groups),
            averages=[Average(named, h, settings.ema_ramp) for h in settings.ema],
            scaler=_scaler(self.device) if settings.precision == "fp16" else None,
            latch=Latch(settings.batch, self.device, settings.skip_nonfinite),
        )

    def run(
        self, state: State, batches: Iterable[Iterable[MicroBatch]]
    ) -> Iterator[Progress]:
        """One step for every global batch, given as its micro-batches.

        On a GPU nothing here waits for the device (fp16 excepted: whether a step counts
        decides what comes next); the caller asks `check` when it reads something.
        """
        state.model.train()
        state.objective.train()
        for batch in batches:
            with self._memory(state), attention(state.objective.plain):
                if state.scaler is None:
                    progress = self._step(state, batch)
                else:
                    progress = self._scaled_step(state, list(batch))
            if self.device.type == "cpu":
                self.check(state)
            with state.latch.held(self._spared(state)):
                state.objective.observe(
                    state.model.process, progress.times, progress.losses
                )
                for average in state.averages:
                    average.update(state.step)
            state.step += 1
            failpoints.hit("step.ema", state.step)
            yield progress

    def check(self, state: State) -> int:
        """How many steps were skipped; one too many is `NonFinite`; waits."""
        return state.latch.check(self.rate(state, state.step))

    def rate(self, state: State, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        settings = self.settings
        factor = schedule(step, settings.steps, settings.warmup, settings.decay)
        return float(state.optimizer.defaults["lr"]) * factor

    def _spared(self, state: State) -> Iterator[Tensor]:
        """What a step that is not finite must leave alone, beside the weights."""
        yield from state.objective.buffers()
        if self.settings.skip_nonfinite:  # without, such a step is the last one
            for average in state.averages:
                yield from average.tensors.values()

    def _step(self, state: State, batch: Iterable[MicroBatch]) -> Progress:
        """Gradients, clipping and the update; only the optimiser's own state moves."""
        optimizer, scaler = state.optimizer, state.scaler
        number = state.step + 1
        optimizer.zero_grad(set_to_none=True)
        losses, times = self._backward(state, batch)
        weights = [p for group in optimizer.param_groups for p in group["params"]]
        grads = [p.grad for p in weights if p.grad is not None]
        if failpoints.hit("step.grad", number):
            grads[0].fill_(math.nan)
        self.world.sum(grads)
        if scaler is not None:
            scaler.unscale_(optimizer)
        norm = get_total_norm(grads, foreach=True)
        if self.settings.clip:
            clip_grads_with_norm_(weights, self.settings.clip, norm, foreach=True)
        lr = self.rate(state, state.step)
        for group in optimizer.param_groups:
            group["lr"] = lr
        if scaler is None:
            state.latch.update(number, losses, times, norm)
            optimizer.found_inf = state.latch.closed  # type: ignore[attr-defined]
            optimizer.step()
        else:
            state.latch.update(number, losses, times, torch.zeros_like(norm))
            self.check(state)
            if not state.latch.closed.item():
                scaler.step(optimizer)
        failpoints.hit("step.opt", number)
        return Progress(number, losses, times, norm, lr)

    def _scaled_step(self, state: State, batch: list[MicroBatch]) -> Progress:
        """A step in fp16: after an overflow the same step again, at half the scale."""
        assert state.scaler is not None
        while True:
            scale = state.scaler.get_scale()
            progress = self._step(state, batch)
            if state.latch.closed.item():  # no scale would help
                state.scaler.update(scale)
                return progress
            state.scaler.update()
            if state.scaler.get_scale() >= scale:
                return progress
            if scale < 1:
                text = (
                    f"trainer: NONFINITE step {progress.step}: gradients overflow fp16"
                )
                raise NumericsError(text, "trainer.precision=bf16", "NONFINITE")

    def _backward(
        self, state: State, batch: Iterable[MicroBatch]
    ) -> tuple[Tensor, Tensor]:
        """Accumulate the gradient of the mean loss; losses and times, each (B,)."""
        losses, times = [], []
        first = self.world.rank * self.share
        common: dict[str, Tensor] = {}  # what the first micro-batch brings for all
        for x0, cond, rows in batch:
            common |= {key: cond[key] for key in cond if key.startswith("reference")}
            _reseed(self.device, f"{self.seed}/{state.step}/{first}")
            first += len(x0)
            rng = Rng(self.seed, rows, state.step).child("train")
            loss = state.objective(state.model, x0, rng, **(cond | common))
            if failpoints.hit("step.loss", state.step + 1):
                loss = loss * math.nan
            total = loss.sum() / self.settings.batch
            if state.scaler is not None:
                total = state.scaler.scale(total)
            total.backward()
            losses.append(loss.detach())
            drawn = getattr(state.objective, "times", None)
            times.append(torch.full_like(loss, math.nan) if drawn is None else drawn)
        return self.world.gather(torch.cat(losses)), self.world.gather(torch.cat(times))

    @contextmanager
    def _memory(self, state: State) -> Iterator[None]:
        """Say which micro-batch would fit."""
        half = max(1, self.micro_batch // 2)
        fits = max(n for n in range(1, half + 1) if self.share % n == 0)
        where = f"trainer: step {state.step + 1} with micro_batch={self.micro_batch}"
        hint = f"trainer.micro_batch={fits} keeps batch={self.settings.batch}"
        if self.micro_batch == 1:
            hint = "trainer.recompute=blocks"
        with memory(where, hint), compilation(self.settings.compile):
            yield


def schedule(step: int, steps: int, warmup: int, decay: str) -> float:
    """The factor of the learning rate at a step, counted from 0.

    Linear over `warmup` steps, then constant, or falling to 0 at `steps` (cosine,
    linear), or by sqrt(warmup / step).
    """
    rise = min(1.0, (step + 1) / warmup) if warmup else 1.0
    done = min(1.0, max(0, step - warmup) / max(1, steps - warmup))
    fall = {
        "constant": 1.0,
        "cosine": (1 + math.cos(math.pi * done)) / 2,
        "linear": 1 - done,
        "inverse_sqrt": math.sqrt(max(warmup, 1) / max(step + 1, warmup, 1)),
    }
    return rise * fall[decay]


def _scaler(device: torch.device) -> torch.amp.GradScaler:
    return torch.amp.GradScaler(device.type)


def freeze(model: Model, glob: str) -> None:
    """Leave only the parameters that match `glob` trainable."""
    names = [name for name, _ in model.named_parameters()]
    if not any(fnmatchcase(name, glob) for name in names):
        message = f"trainable: no parameter matches `{glob}`{near(glob, names)}"
        raise ConfigError(message, f"names begin like `{names[0]}`")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(fnmatchcase(name, glob))


def _reseed(device: torch.device, text: str) -> None:
    """Seed the device's default generator, from which dropout draws."""
    seed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest())
    generator: Any = torch.default_generator
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        generator = torch.cuda.default_generators[index]
    generator.manual_seed(seed)
