"""Ancestral steps of masked tokens that reuse a belief while nothing has changed."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from diffusion_cli.core import Posterior
from diffusion_cli.denoiser import Denoiser
from diffusion_cli.processes import Process
from diffusion_cli.processes.tokens import Masking
from diffusion_cli.rng import Rng
from diffusion_cli.samplers import Grid, Sampler, samplers
from diffusion_cli.settings import require


@samplers("cached")
class Cached(Sampler):
    """`ancestral`, which calls the network only after a token of the batch has changed.

    x_s ~ p(x_s | x_t),   the belief of x_t kept while x_s = x_t

    The same samples, bit for bit. It needs a belief that does not depend on the time;
    with L tokens no batch of one takes more than L calls, whatever the steps.

    Reference: Sahoo et al. 2024, section 3.5, arXiv:2406.07524.

    Args:
        steps: Number of steps; at most one evaluation each.
        grid: Where the steps fall.
        how: Keywords of the process's reverse step, such as `final`.
    """

    timeless = True

    def __init__(self, grid: Grid, steps: int = 1000, **how: Any) -> None:
        require(steps >= 1, "steps", steps, ">= 1")
        self.grid, self.steps, self.how = grid, steps, how

    @property
    def needs(self) -> type[Process]:
        return Masking

    @torch.no_grad()
    def trajectory(self, denoiser: Denoiser, x: Tensor, rng: Rng) -> Iterator[Tensor]:
        process = denoiser.process
        q: Posterior | None = None
        for i, (t, s) in enumerate(pairwise(self.grid(process, self.steps))):
            q = denoiser(x, t) if q is None else q
            after = process.reverse(q, x, t, s, rng.at(i), **self.how)
            q = q if after.equal(x) else None
            x = after
            yield x
