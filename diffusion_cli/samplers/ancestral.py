"""The sampler of every process: one reverse step after the other."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from diffusion_cli.denoiser import Denoiser
from diffusion_cli.rng import Rng
from diffusion_cli.samplers import Grid, Sampler, samplers
from diffusion_cli.settings import require


@samplers("ancestral")
class Ancestral(Sampler):
    """The process's own reverse step: DDPM, DDIM (eta = 0), and any other process.

    x_s ~ integral of q(x_s | x_t, x_0) q(x_0 | x_t) dx_0

    Reference: Ho et al. 2020, algorithm 2, arXiv:2006.11239; Song et al. 2021, eq. 12,
        arXiv:2010.02502.

    Args:
        steps: Number of steps; one evaluation each.
        grid: Where the steps fall.
        how: Keywords of the process's reverse step, such as `eta`.
    """

    own = True

    def __init__(self, grid: Grid, steps: int = 1000, **how: Any) -> None:
        require(steps >= 1, "steps", steps, ">= 1")
        self.grid, self.steps, self.how = grid, steps, how
        self.draws = how.get("eta") != 0

    @torch.no_grad()
    def trajectory(self, denoiser: Denoiser, x: Tensor, rng: Rng) -> Iterator[Tensor]:
        process = denoiser.process
        for i, (t, s) in enumerate(pairwise(self.grid(process, self.steps))):
            x = process.reverse(denoiser(x, t), x, t, s, rng.at(i), **self.how)
            yield x
