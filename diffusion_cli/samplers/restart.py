"""Believe, and add noise again: few steps of a one-step net."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from diffusion_cli.denoiser import Denoiser
from diffusion_cli.processes import Process
from diffusion_cli.processes.affine import Affine
from diffusion_cli.rng import Rng
from diffusion_cli.samplers import Grid, Sampler, samplers
from diffusion_cli.settings import require


@samplers("restart")
class Restart(Sampler):
    """The end that is believed in, and from there new noise up to the next time.

    x_s = alpha_s f(x_t) + sigma_s n,   n drawn anew

    For beliefs that are ends of trajectories (`objective=consistency`), of which every
    step is another try; the mean of a belief that is not, loses its spread.

    Reference: Song et al. 2023, algorithm 1, arXiv:2303.01469.

    Args:
        steps: Number of steps; one evaluation each.
        grid: Where the steps fall.
    """

    def __init__(self, grid: Grid, steps: int = 1) -> None:
        require(steps >= 1, "steps", steps, ">= 1")
        self.grid, self.steps = grid, steps

    @property
    def needs(self) -> type[Process]:
        return Affine

    @property
    def noisy(self) -> bool:
        return True

    @torch.no_grad()
    def trajectory(self, denoiser: Denoiser, x: Tensor, rng: Rng) -> Iterator[Tensor]:
        process = denoiser.process
        for i, (t, s) in enumerate(pairwise(self.grid(process, self.steps))):
            x = denoiser(x, t).mean
            if s > 0:
                noise = process.noise(x, rng.at(i).child("restart"))
                x = process.corrupt(x, s, noise)
            yield x
