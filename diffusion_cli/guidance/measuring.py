"""Linear operators on images (B, C, H, W) or vectors (B, D), each axis of space."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from diffusion_cli.guidance import Operator, operators
from diffusion_cli.rng import Rng
from diffusion_cli.settings import require


def space(x: Tensor) -> tuple[int, ...]:
    """The axes of a batch that are space: rows and columns, or coordinates."""
    return tuple(range(2 if x.ndim > 2 else 1, x.ndim))


@operators("identity")
class Identity(Operator):
    """All of the sample, up to the noise of the measurement.

    A x = x

    No reference: the trivial operator.
    """

    def __call__(self, x: Tensor) -> Tensor:
        return x

    def back(self, y: Tensor) -> Tensor:
        return y


@operators("mask")
class Mask(Operator):
    """A part of the sample; what is hidden is zero in y and ignored there.

    A x = known * x

    Reference: Lugmayr et al. 2022, section 4, arXiv:2201.09865.

    Args:
        hidden: A box in the middle, the last part of the last axis, or random places.
        fraction: How much is hidden: of each side of the box, of the axis, of places.
        seed: Of the random places.
    """

    def __init__(
        self,
        hidden: Literal["box", "half", "random"] = "box",
        fraction: float = 0.5,
        seed: int = 0,
    ) -> None:
        require(0 <= fraction <= 1, "fraction", fraction, "in [0, 1]")
        require(0 <= seed < 2**63, "seed", seed, "in 0 .. 2^63 - 1")
        self.hidden, self.fraction, self.seed = hidden, fraction, seed

    def __call__(self, x: Tensor) -> Tensor:
        return x * self.known(x)

    def back(self, y: Tensor) -> Tensor:
        return y * self.known(y)

    def known(self, x: Tensor) -> Tensor:
        """1 where the sample is known, else 0; broadcasts over `x`."""
        sides = [x.shape[axis] for axis in space(x)]
        if self.hidden == "random":
            rng = Rng(self.seed, torch.zeros(1, dtype=torch.int64, device=x.device))
            return (rng.child("mask").uniform((1, *sides)) >= self.fraction).to(x.dtype)
        known = torch.ones(sides, dtype=x.dtype, device=x.device)
        lengths = [round(self.fraction * side) for side in sides]
        if self.hidden == "half":
            known[..., sides[-1] - lengths[-1] :] = 0
            return known
        known[
            tuple(
                slice((side - length) // 2, (side - length) // 2 + length)
                for side, length in zip(sides, lengths, strict=True)
            )
        ] = 0
        return known


@operators("downsample")
class Downsample(Operator):
    """The means of blocks.

    A x = mean of x over blocks of `factor` along every axis of space

    Reference: Song et al. 2023, section 4, OpenReview 9_gsMA8MRKQ.

    Args:
        factor: Side of a block; divides the sides of a sample.
    """

    def __init__(self, factor: int = 2) -> None:
        require(factor >= 1, "factor", factor, ">= 1")
        self.factor = factor

    def __call__(self, x: Tensor) -> Tensor:
        for axis in space(x):
            side = x.shape[axis]
            require(
                side % self.factor == 0, "factor", self.factor, f"a divisor of {side}"
            )
            shape = (*x.shape[:axis], -1, self.factor, *x.shape[axis + 1 :])
            x = x.reshape(shape).mean(axis + 1)
        return x

    def back(self, y: Tensor) -> Tensor:
        for axis in space(y):
            y = y.repeat_interleave(self.factor, axis)
        return y

    def gain(self, y: Tensor) -> float:
        return float(self.factor ** -len(space(y)))
