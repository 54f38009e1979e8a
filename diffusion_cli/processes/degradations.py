"""Degradations that hide a part, take the colour, or lead somewhere else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor

from diffusion_cli.core import Spec
from diffusion_cli.errors import ConfigError
from diffusion_cli.processes.affine import like
from diffusion_cli.processes.degradation import (
    Examples,
    Operator,
    Read,
    operators,
    side,
)
from diffusion_cli.rng import Rng
from diffusion_cli.settings import require

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in JPEG and in grey PNGs


@operators("mask")
class Mask(Operator):
    """A hole that grows from its centre, until at t = 1 nothing is left.

    D(x, t) = (1 - exp(-d^2 / (2 std^2)))^holes x,   std = width side t / (1 - t)

    d is the distance from the centre and side the longer one, in pixels. One soft hole
    only dims, and what is dimmed is not lost; many of them have an edge.

    Reference: Bansal et al. 2022, section 4.2, arXiv:2208.09392; the holes of a product
        have growing widths there, and equal ones here.

    Args:
        centre: The middle of the image, or anywhere in it, for every sample its own.
        width: Standard deviation at t = 1/2, as a part of the longer side.
        holes: How many equal holes are laid over each other.
    """

    def __init__(
        self,
        data: Spec,
        centre: Literal["fixed", "random"] = "fixed",
        width: float = 0.08,
        holes: int = 20,
    ) -> None:
        super().__init__()
        require(width > 0, "width", width, "> 0")
        require(holes >= 1, "holes", holes, ">= 1")
        self.holes = holes
        _, self.high, self.wide = side("mask", data)
        self.centre, self.std = centre, width * max(self.high, self.wide)
        self.told = centre == "fixed"

    def noise(self, x0: Tensor, rng: Rng) -> Tensor:
        """The centre as parts of height and width, (B, 2)."""
        if self.centre == "fixed":
            return x0.new_full((len(x0), 2), 0.5)
        return rng.child("centre").uniform((len(x0), 2)).to(x0.dtype)

    def forward(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        down, across = (
            torch.arange(size, device=x0.device) + 0.5 - part.double()[:, None] * size
            for size, part in zip((self.high, self.wide), noise.unbind(1), strict=True)
        )
        square = (down[:, :, None] ** 2 + across[:, None] ** 2)[:, None]  # (B, 1, H, W)
        t = t if t.ndim == 0 else t.reshape(-1, 1, 1, 1)
        sharp = ((1 - t) / t).clamp(max=1e6) / self.std  # infinite at t = 0
        kept = (-torch.expm1(-square * sharp**2 / 2)) ** self.holes
        kept = kept.clamp(min=(t <= 0).double())  # also at the very centre
        return kept.to(x0.dtype) * x0

    @property
    def around(self) -> float:
        return 0.0

    def end(self, shape: Sequence[int], rng: Rng) -> Tensor:
        return torch.zeros(tuple(shape), device=rng.device)


@operators("desaturate")
class Desaturate(Operator):
    """The colour fades: from the image to its brightness in all three channels.

    D(x, t) = (1 - t) x + t y,   y = 0.299 R + 0.587 G + 0.114 B

    The prior draws from grey images of the training data, which are kept.

    Reference: Bansal et al. 2022, appendix (colourisation), arXiv:2208.09392.

    Args:
        examples: How many grey images are kept.
    """

    luma: Tensor

    def __init__(self, data: Spec, examples: int = 512) -> None:
        super().__init__()
        require(examples >= 1, "examples", examples, ">= 1")
        channels, high, wide = side("desaturate", data)
        if channels != 3:
            raise ConfigError(
                "process.operator: `desaturate` needs three channels, red, green and "
                f"blue; the data has {channels}",
                "dataset=cifar10, dataset=image_folder, or process=cold_blur",
            )
        luma = torch.tensor(LUMA, dtype=torch.float64)
        self.register_buffer("luma", luma, persistent=False)
        self.examples = Examples(examples, (1, high, wide))

    def grey(self, x0: Tensor) -> Tensor:
        """The brightness, (B, 1, H, W)."""
        return torch.einsum("c,bchw->bhw", self.luma.to(x0.dtype), x0)[:, None]

    def forward(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        return x0 + like(t, x0) * (self.grey(x0) - x0)

    def fit(self, batches: Iterable[Tensor]) -> None:
        self.examples.keep(self.grey(x0) for x0 in batches)

    def end(self, shape: Sequence[int], rng: Rng) -> Tensor:
        return self.examples.draw(rng).expand(tuple(shape)).clone()


@operators("fade")
class Fade(Operator):
    """A straight line to something else: to normal noise, or to other data.

    D(x, t; n) = (1 - t) x + t n,   n* = (x_t - (1 - t) m) / t

    To noise this is flow matching: hot diffusion is a fade. To other data, n is one of
    their samples and the result leads from those to these.

    Reference: Bansal et al. 2022, section 5.3, arXiv:2208.09392; Lipman et al. 2023,
        eq. 22, arXiv:2210.02747.

    Args:
        towards: `noise`, or a file or folder of samples like those of the data set.
        examples: How many samples of the other data are kept in the checkpoint.
    """

    def __init__(
        self,
        data: Spec,
        read: Read | None = None,
        towards: str = "noise",
        examples: int = 512,
    ) -> None:
        super().__init__()
        require(examples >= 1, "examples", examples, ">= 1")
        self.towards, self.read, self.shape = towards, read, data.shape
        self.gaussian = towards == "noise"
        self.examples = None if self.gaussian else Examples(examples, data.shape)

    def noise(self, x0: Tensor, rng: Rng) -> Tensor:
        if self.examples is None:
            return rng.child("noise").normal(x0.shape, x0.dtype)
        return self.examples.draw(rng).to(x0.dtype)

    def forward(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        t = like(t, x0)
        return (1 - t) * x0 + t * noise

    def invert(self, x0: Tensor, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        t = like(t, x0)
        return (x - (1 - t) * x0) / t

    def fit(self, batches: Iterable[Tensor]) -> None:
        if self.examples is not None:
            self.examples.keep([self._others()])

    def ready(self) -> None:
        if self.examples is not None:
            self._others()

    def _others(self) -> Tensor:
        """The other data, (N, ...)."""
        if self.read is None:
            message = f"process.operator.towards: nothing here can read {self.towards}"
            raise ConfigError(message, "towards=noise, or dcli train")
        found = self.read(self.towards)
        if found.shape[1:] != self.shape:
            shapes = tuple(found.shape[1:]), self.shape
            raise ConfigError(
                f"process.operator.towards: samples of shape {shapes[0]} in "
                f"{self.towards}, the data is {shapes[1]}",
                "other data in the format of this data set",
            )
        return found

    @property
    def around(self) -> float | None:
        return 0.0 if self.gaussian else None

    def end(self, shape: Sequence[int], rng: Rng) -> Tensor:
        return self.noise(torch.empty(tuple(shape), device=rng.device), rng)
