"""Noise or data, and nothing in between."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from diffusion_cli.core import Posterior
from diffusion_cli.processes import processes
from diffusion_cli.processes.affine import like
from diffusion_cli.processes.arcs import slerp
from diffusion_cli.processes.pathless import Pathless
from diffusion_cli.rng import Rng


@processes("jump")
class Jump(Pathless):
    """x_t = x_0 at t = 0, else noise n ~ N(0, I): the process of one-step generators.

    x_s = E[x_0 | x_t]

    A step is one pass through the network wherever it ends, so `sampler=ancestral
    steps=2` is f(f(n)). There is no path between, so no ODE, score or grid of noise.

    Reference: Shocher et al. 2024, section 2, arXiv:2311.01462.
    """

    def __init__(self) -> None:
        super().__init__()

    def noise(self, x0: Tensor, rng: Rng) -> Tensor:
        return rng.child("noise").normal(x0.shape, x0.dtype)

    def corrupt(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        return torch.where(like(t.to(x0.dtype), x0) > 0, noise, x0)

    def prior(self, shape: Sequence[int], rng: Rng) -> Tensor:
        return self.noise(
            torch.empty(tuple(shape), device=rng.device), rng.child("prior")
        )

    def between(self, a: Tensor, b: Tensor, share: Tensor) -> Tensor:
        return slerp(a, b, share)

    def reverse(  # type: ignore[override]  # it takes no keywords
        self, q: Posterior, x: Tensor, t: Tensor, s: Tensor, rng: Rng
    ) -> Tensor:
        return q.mean
