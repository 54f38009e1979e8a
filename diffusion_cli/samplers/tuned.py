"""The grid that was fitted to a denoiser, by `dcli tune`."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from diffusion_cli.denoiser import Context
from diffusion_cli.errors import CheckpointError
from diffusion_cli.processes import Process
from diffusion_cli.samplers import grids
from diffusion_cli.samplers.noise_grid import Warped

_STEEPEST = 100.0  # of a knot: exp(100) is within float64


@grids("tuned")
class Tuned(Warped):
    """Steps where `dcli tune` found that these weights need them.

    It is fitted to one sampler, with all its keys, to one guidance and to one number of
    steps, and found for no other.

    No reference: our own search over the densities of `Warped`.
    """

    def __init__(self, context: Context) -> None:
        super().__init__(torch.zeros(2))
        self.context = context

    def __call__(self, process: Process, steps: int) -> Tensor:
        self.knots = _sound(self.context.tuned(steps))
        return super().__call__(process, steps)


def _sound(values: Mapping[str, Tensor]) -> Tensor:
    """The knots, if tuning can have found them."""
    knots = values.get("knots", torch.zeros(0))
    if knots.ndim != 1 or len(knots) < 2 or not bool((knots.abs() < _STEEPEST).all()):
        message = "derived/grid: these are not the values of a tuned grid"
        raise CheckpointError(message, "dcli tune ckpt=...", "DERIVED")
    return knots
