"""The Wasserstein distance along random lines."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from diffusion_cli.metrics import Metric, Result, Subject, metrics
from diffusion_cli.metrics.points import compared
from diffusion_cli.rng import Rng
from diffusion_cli.settings import require


@metrics("sliced_w2")
class SlicedW2(Metric):
    """The 2-Wasserstein distance along random lines, in O(n log n).

    SW2^2 = E_u[ mean_i (sorted(u.x)_i - sorted(u.y)_i)^2 ],   |u| = 1

    The same lines serve every model. Beside it stands the floor, the same between two
    disjoint parts of the data. A shift by m counts |m| / sqrt(d).

    Reference: Bonneel et al. 2015, "Sliced and Radon Wasserstein barycenters of
        measures", section 3.

    Args:
        n: Number of points on either side.
        projections: Number of lines.
        seeds: How often the samples are drawn, for a mean and its spread.
    """

    def __init__(self, n: int = 10_000, projections: int = 500, seeds: int = 1) -> None:
        require(n >= 2, "n", n, ">= 2")
        require(seeds >= 1, "seeds", seeds, ">= 1")
        require(projections >= 1, "projections", projections, ">= 1")
        self.n, self.seeds, self.projections = n, seeds, projections

    def __call__(self, subject: Subject) -> Result:
        return compared(
            subject, self.n, self.seeds, "sliced_w2", "sliced_w2", self.distance
        )

    def distance(self, x: Tensor, y: Tensor) -> float:
        """SW2 of two sets of n points, (n, d) each."""
        d = x.shape[1]
        rng = Rng(0, torch.arange(self.projections)).child("lines")
        lines = rng.normal((self.projections, d), x.dtype)
        lines = lines / lines.norm(dim=1, keepdim=True)
        total = 0.0
        for part in lines.split(64):
            gaps = (x @ part.T).sort(0).values - (y @ part.T).sort(0).values
            total += float(gaps.square().mean(0).sum())
        return math.sqrt(total / self.projections)
