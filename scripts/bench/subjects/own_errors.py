"""Samples of dcli's samplers where the exact ones are known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from diffusion_cli.core import Point, Posterior
from diffusion_cli.denoiser import Denoiser
from diffusion_cli.processes import processes
from diffusion_cli.rng import Rng
from diffusion_cli.samplers import samplers
from diffusion_cli.samplers.noise_grid import Warped
from diffusion_cli.tuning import Trajectories, badness, search
from subjects.exact import END, LARGEST, SMALLEST, Mixture, Once, measured


class Exact(Denoiser):
    """The denoiser of a problem."""

    def __init__(self, problem: Mixture) -> None:
        super().__init__()
        schedule = {"name": "karras", "sigma_min": SMALLEST, "sigma_max": LARGEST}
        self.process = processes.build({"name": "gaussian", "schedule": schedule})
        self.problem = problem

    def forward(self, x: Tensor, t: Tensor, **cond: Tensor) -> Posterior:
        k = self.process.schedule(t)
        return Point(self.problem.mean(x / k.alpha, k.sigma / k.alpha))


def errors(
    sampler: dict[str, Any],
    tuned: bool = False,
    calls: Sequence[int] = (),
    small: bool = False,
) -> Once:
    """A sampler by its node; `tuned` to other trajectories of the same problem."""

    def walk(problem: Mixture, noise: Tensor, calls: int) -> Tensor:
        denoiser = Exact(problem)
        walker = samplers.build({**sampler, "steps": calls})
        rng = Rng(0, torch.arange(len(noise)))
        if tuned:
            _tune(walker, denoiser, noise.shape[1], rounds=1 if small else 4)
        *_, x = walker.trajectory(denoiser, noise * LARGEST, rng)
        return x

    return measured(walk, LARGEST, calls, END, small)


def _tune(walker: Any, denoiser: Exact, size: int, rounds: int) -> None:
    """As `dcli tune` does, with 64 trajectories of its own."""
    rng = Rng(1, torch.arange(64))
    start = denoiser.process.prior((64, size), rng).double()
    many = {"name": "eab", "steps": 200, "grid": {"name": "asinh"}}
    known = Trajectories.followed(denoiser, start, rng, samplers.build(many))

    def bad(knots: Tensor) -> float:
        walker.grid = Warped(knots)
        return badness(known.errors(walker))

    *_, (knots, _) = search(bad, rounds)
    walker.grid = Warped(knots)
