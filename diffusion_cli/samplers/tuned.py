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

    It is fitted to one sampler and one number of steps.

    No reference: our own search over the densities of `Warped`.

    Args:
        of: The sampler that it was tuned for.
    """

    def __init__(self, context: Context, of: str = "eab") -> None:
        super().__init__(torch.zeros(2))
        self.context, self.of = context, of

    def __call__(self, process: Process, steps: int) -> Tensor:
        by = f"tune ckpt=RUN sampler={self.of} steps={steps}"
        found = self.context.fitted(f"grid-{self.of}-{steps}", by)
        self.knots = _sound(found, by)
        return super().__call__(process, steps)


def _sound(values: Mapping[str, Tensor], by: str) -> Tensor:
    """The knots, if tuning can have found them."""
    knots = values.get("knots", torch.zeros(0))
    if knots.ndim != 1 or len(knots) < 2 or not bool((knots.abs() < _STEEPEST).all()):
        message = "derived/grid: these are not the values of a tuned grid"
        raise CheckpointError(message, f"dcli {by}", "DERIVED")
    return knots
