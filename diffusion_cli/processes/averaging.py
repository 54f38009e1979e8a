"""Degradations that average: less and less of an image, down to its mean colour."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from diffusion_cli.core import Spec
from diffusion_cli.processes.affine import like
from diffusion_cli.processes.degradation import Averaging, operators
from diffusion_cli.settings import require


@operators("blur")
class Blur(Averaging):
    """A Gaussian kernel of growing width, with mirrored edges; at t = 1 infinite.

    D(x, t) = C^T exp(-std^2 |w|^2 / 2) C x,   std = width side t / (1 - t)

    C is the cosine transform, w its frequencies and side the longer one, in pixels.

    Reference: Bansal et al. 2022, section 4.1, arXiv:2208.09392; Rissanen et al. 2023,
        section 3, arXiv:2206.13397 (by cosines). The width over time is ours.

    Args:
        width: Standard deviation at t = 1/2, as a part of the longer side.
    """

    across: Tensor
    down: Tensor
    square: Tensor

    def __init__(self, data: Spec, width: float = 0.125) -> None:
        super().__init__("blur", data)
        require(width > 0, "width", width, "> 0")
        _, high, wide = self.shape
        down, across = _cosines(high), _cosines(wide)
        w = [math.pi * torch.arange(n, dtype=torch.float64) / n for n in (high, wide)]
        square = (w[0][:, None] ** 2 + w[1] ** 2) * (width * max(high, wide)) ** 2
        self.register_buffer("down", down, persistent=False)
        self.register_buffer("across", across, persistent=False)
        self.register_buffer("square", square, persistent=False)  # (std w)^2 at 1/2

    def forward(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        ratio = (t / (1 - t)).clamp(max=1e6)  # infinite at t = 1
        ratio = ratio if t.ndim == 0 else ratio.reshape(-1, 1, 1, 1)
        lost = -torch.expm1(-self.square * ratio**2 / 2).to(x0.dtype)  # (B, 1, H, W)
        down, across = self.down.to(x0.dtype), self.across.to(x0.dtype)
        # what is taken away, so that nothing is at t = 0, to the last bit
        return x0 - down.T @ (lost * (down @ x0 @ across.T)) @ across


def _cosines(size: int) -> Tensor:
    """The orthonormal cosine transform, a row per frequency: DCT-II."""
    place = torch.arange(size, dtype=torch.float64)
    rows = torch.cos(math.pi / size * place[:, None] * (place + 0.5))
    rows[0] /= math.sqrt(2)
    return rows * math.sqrt(2 / size)


@operators("pixelate")
class Pixelate(Averaging):
    """Averages over blocks of growing size: 1, 2, 4, ... pixels, the whole at t = 1.

    D(x, t) = (1 - w) P_k x + w P_(k+1) x,   k + w = t stages

    P_k is the mean over blocks of the k-th size; a block is made of whole smaller ones,
    so sizes are products of the prime factors of each side.

    Reference: Bansal et al. 2022, section 4.3, arXiv:2208.09392. The way between two
        sizes is ours.
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, data: Spec) -> None:
        super().__init__("pixelate", data)
        _, high, wide = self.shape
        blocks = [_blocks(high), _blocks(wide)]
        stages = max(map(len, blocks))
        for each in blocks:  # the shorter side waits at its end
            each += [each[-1]] * (stages - len(each))
        rows, columns = (
            torch.stack([_means(size, block) for block in each])
            for size, each in zip((high, wide), blocks, strict=True)
        )
        self.register_buffer("rows", rows, persistent=False)  # (stages + 1, H, H)
        self.register_buffer("columns", columns, persistent=False)

    def forward(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        stages = len(self.rows) - 1
        position = t.double() * stages
        # 1e-9 keeps k / stages at its own block whatever the rounding of the product
        stage = (position + 1e-9).floor().clamp(0, max(stages - 1, 0)).long()
        w = like((position - stage).clamp(0, 1), x0)
        fine, coarse = (
            self._mean(x0, stage),
            self._mean(x0, (stage + 1).clamp(max=stages)),
        )
        return fine + w * (coarse - fine)

    def _mean(self, x0: Tensor, stage: Tensor) -> Tensor:
        rows, columns = self.rows[stage].to(x0.dtype), self.columns[stage].to(x0.dtype)
        if stage.ndim:
            rows, columns = rows[:, None], columns[:, None]  # (B, 1, H, H)
        return rows @ x0 @ columns.mT


def _blocks(size: int) -> list[int]:
    """Block sizes from 1 to `size`, each a multiple of the one before it."""
    blocks = [1]
    while blocks[-1] < size:
        rest = size // blocks[-1]
        prime = next(p for p in range(2, rest + 1) if rest % p == 0)
        blocks.append(blocks[-1] * prime)
    return blocks


def _means(size: int, block: int) -> Tensor:
    """The matrix that replaces each number by the mean of its block."""
    of = torch.arange(size) // block
    return (of[:, None] == of).double() / block
