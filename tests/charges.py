"""A finite data set under any law of the noise: FIX-E, in closed form."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from diffusion_cli.core import Point, Posterior
from diffusion_cli.denoiser import Denoiser
from diffusion_cli.processes import processes
from diffusion_cli.processes.rays import Rays
from diffusion_cli.samplers import samplers

KARRAS = {"name": "karras", "sigma_min": 0.002, "sigma_max": 80.0}
STRAIGHT = {"name": "straight"}


def electrostatic(D: float, schedule: Any = KARRAS) -> Rays:
    """The process of D extra dimensions."""
    node = {"name": "electrostatic", "D": D, "schedule": schedule}
    return cast(Rays, processes.build(node))


class Charges(Denoiser):
    """Equal charges at `points` (N, ...): the posterior is a softmax of densities.

    The prior's density is that of the noise at the end, so it gives the kernel too.
    """

    def __init__(self, process: Rays, points: Tensor) -> None:
        super().__init__()
        self.process: Rays = process
        self.points = points.double()

    def share(self, x: Tensor, t: Tensor) -> Tensor:
        """The posterior weights (B, N) at one time ()."""
        k = self.process.schedule(t)
        kernels = [
            self.process.log_prior(self.process.end.sigma * (x - k.alpha * y) / k.sigma)
            for y in self.points
        ]
        return torch.stack(kernels, 1).softmax(1)

    def forward(self, x: Tensor, t: Tensor, **cond: Tensor) -> Posterior:
        share = self.share(x.double(), t)
        aims = [
            self.process.aim(y.expand_as(x), x.double(), t.expand(len(x)))
            for y in self.points
        ]
        mean = torch.einsum("bn,nb...->b...", share, torch.stack(aims))
        return Point(mean.to(x.dtype))


def walk(
    denoiser: Denoiser,
    x: Tensor,
    steps: int,
    sampler: str = "heun",
    grid: str = "log_sigma",
) -> list[Tensor]:
    """The states of a sampler, from x_1."""
    from oracles import rows

    node = {"name": sampler, "steps": steps, "grid": {"name": grid}}
    return list(samplers.build(node).trajectory(denoiser, x, rows(len(x))))
