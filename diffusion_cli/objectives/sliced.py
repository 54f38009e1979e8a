"""Score matching along random directions."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from diffusion_cli.couplings import Coupling
from diffusion_cli.objectives import TimeLaw, Weight, objectives
from diffusion_cli.objectives.matching import ScoreMatching, product
from diffusion_cli.rng import Rng
from diffusion_cli.settings import require


@objectives("sliced")
class Sliced(ScoreMatching):
    """Sliced score matching: the trace as the mean over directions v, E v v^T = I.

    tr dr/dx = E_v v^T dr/dx v
    |r|^2 as it is (reduced: less variance), or E_v (v . r)^2

    The mean loss is that of `denoise` with the same weight, and noise never enters it;
    a slice costs a backward pass, and its variance grows like 1 / sigma^2 of a level.

    Reference: Song et al. 2019, eq. 7 and 8, arXiv:1905.07088.

    Args:
        weight: w(t), on the squared error of x_0.
        time: The law of the training times.
        slices: Directions per sample.
        law: Signs, normals, or uniform on the sphere of radius sqrt(d).
        reduced: Whether |r|^2 is taken exactly.
        drop: Probability with which a label is left out, for classifier-free guidance.
    """

    def __init__(
        self,
        weight: Weight,
        time: TimeLaw,
        coupling: Coupling,
        slices: int = 1,
        law: Literal["rademacher", "gaussian", "sphere"] = "rademacher",
        reduced: bool = True,
        drop: float = 0.0,
    ) -> None:
        super().__init__(weight, time, coupling, drop)
        require(slices >= 1, "slices", slices, ">= 1")
        self.slices, self.law, self.reduced = slices, law, reduced

    def parts(self, r: Tensor, x: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
        ways = [self.direction(r, rng.child(str(i))) for i in range(self.slices)]
        trace = torch.stack([product(r, x, v) for v in ways]).mean(0)
        if self.reduced:
            return r.flatten(1).square().sum(1), trace
        along = torch.stack([(r * v).flatten(1).sum(1) for v in ways])
        return along.square().mean(0), trace

    def direction(self, r: Tensor, rng: Rng) -> Tensor:
        """v, the shape of `r`, a row per sample."""
        if self.law == "rademacher":
            return 2 * rng.integers(2, r.shape).to(r.dtype) - 1
        v = rng.normal(r.shape, r.dtype)
        if self.law == "gaussian":
            return v
        flat = v.flatten(1)
        norm = flat.norm(dim=1, keepdim=True) / flat.shape[1] ** 0.5
        on: Tensor = (flat / norm).view_as(v)
        return on
