"""Beliefs about data at even times: what metrics by noise level share.

Registers nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from diffusion_cli.core import Posterior
from diffusion_cli.denoiser import Model
from diffusion_cli.metrics import Batch
from diffusion_cli.processes import Process


class Belief(NamedTuple):
    """What a model believes of a batch at one of the times."""

    level: int  # number of the time
    x0: Tensor  # what the belief is to be the mean of, (B, ...)
    q: Posterior


def times(process: Process, count: int) -> Tensor:
    """Rising times in the middle of `count` even parts of the span, float64.

    Those of a process with levels are the nearest that it knows, each once.
    """
    low, high = process.span
    t = low + (torch.arange(count, dtype=torch.float64) + 0.5) * (high - low) / count
    if process.levels:
        t = torch.unique((t * process.levels).round().clamp(min=1)) / process.levels
    return t


@torch.no_grad()
def beliefs(model: Model, batch: Batch, t: Tensor) -> Iterator[Belief]:
    """The beliefs about data at every time, without guidance, given their labels."""
    x0, cond, rng = batch
    denoiser = model.given(**cond)
    for level, now in enumerate(t.to(x0.device)):
        own = rng.child("levels").at(level)
        x = model.process.corrupt(x0, now, model.process.noise(x0, own))
        yield Belief(level, model.process.aim(x0, x, now), denoiser(x, now))


def columns(process: Process, t: Tensor) -> list[dict[str, float]]:
    """The first columns of a table by time: t, and sigma / alpha where there is one."""
    noise = process.noise_to_signal(t)
    if noise is None:
        return [{"t": float(each)} for each in t]
    return [{"t": float(a), "noise": float(b)} for a, b in zip(t, noise, strict=True)]
