"""Energies in closed form."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from diffusion_cli.denoiser import Context
from diffusion_cli.guidance import Energy, energies
from diffusion_cli.settings import require


@energies("quadratic")
class Quadratic(Energy):
    """The energy of a normal distribution: near to one sample, or to a number.

    E(x) = |x - m|^2 / (2 s^2)

    No reference: the logarithm of a normal density.

    Args:
        mean: m, the same for all coordinates.
        std: s.
        path: A file or folder of samples, whose mean is m instead.
    """

    def __init__(
        self,
        context: Context,
        mean: float = 0.0,
        std: float = 1.0,
        path: str | None = None,
    ) -> None:
        super().__init__()
        require(std > 0, "std", std, "> 0")
        self.std = std
        self.mean = (
            torch.tensor(mean) if path is None else context.samples(path).mean(0)
        )

    def forward(self, x: Tensor) -> Tensor:
        gap = (x - self.mean.to(x)).flatten(1)
        return gap.square().sum(1) / (2 * self.std**2)


@energies("linear")
class Linear(Energy):
    """The energy of a constant force: more of one direction.

    E(x) = -slope <d, x>

    No reference: the simplest energy with a gradient.

    Args:
        slope: Strength of the force; negative pushes away.
        path: A file or folder of samples, whose mean is d; null is all ones.
    """

    def __init__(
        self, context: Context, slope: float = 1.0, path: str | None = None
    ) -> None:
        super().__init__()
        self.slope = slope
        self.direction = (
            torch.tensor(1.0) if path is None else context.samples(path).mean(0)
        )

    def forward(self, x: Tensor) -> Tensor:
        return -self.slope * (self.direction.to(x) * x).flatten(1).sum(1)


@energies("cosine")
class Cosine(Energy):
    """Cosine similarity to given samples.

    E(x) = -mean_i <x, y_i> / (|x| |y_i|)

    Reference: Liu et al. 2021, section 3, arXiv:2112.05744, on samples themselves
        instead of features.

    Args:
        path: The given samples y_i: a file or a folder.
    """

    def __init__(self, context: Context, path: str) -> None:
        super().__init__()
        self.direction = normalize(context.samples(path).flatten(1), dim=1).mean(0)

    def forward(self, x: Tensor) -> Tensor:
        return -normalize(x.flatten(1), dim=1) @ self.direction.to(x)
