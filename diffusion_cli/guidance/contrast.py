"""Guidance by contrast, q + w (other - q), inside an interval of noise levels."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import cast

import torch
from torch import Tensor

from diffusion_cli.core import Posterior
from diffusion_cli.denoiser import Denoiser
from diffusion_cli.processes.affine import Affine, like
from diffusion_cli.settings import require


class Contrast(Denoiser):
    """Shared by guidance that moves from one belief toward another, and past it.

    Outside low <= sigma / alpha <= high the scale is 1. A belief of weight 0 is not
    computed at all where one time holds for the whole batch.
    """

    def __init__(
        self, denoiser: Denoiser, scale: float, low: float, high: float | None
    ) -> None:
        super().__init__()
        require(scale >= 0, "scale", scale, ">= 0")
        require(low >= 0, "low", low, ">= 0")
        above = high is None or high > low
        require(above, "high", high, f"> low={low:g} or null")
        self.inner, self.process, self.scale = denoiser, denoiser.process, scale
        self.low, self.high = low, math.inf if high is None else high
        if self.low or high is not None:
            self.needs = Affine

    @abstractmethod
    def start(self, x: Tensor, t: Tensor, **cond: Tensor) -> Posterior:
        """The belief to move away from: all there is at scale 0."""

    @abstractmethod
    def goal(self, x: Tensor, t: Tensor, **cond: Tensor) -> Posterior:
        """The belief to move to: all there is at scale 1."""

    @abstractmethod
    def both(self, x: Tensor, t: Tensor, **cond: Tensor) -> tuple[Posterior, Posterior]:
        """Start and goal together."""

    def forward(self, x: Tensor, t: Tensor, **cond: Tensor) -> Posterior:
        scale = self._scale(t)
        if isinstance(scale, float) and scale == 1:
            return self.goal(x, t, **cond)
        if isinstance(scale, float) and scale == 0:
            return self.start(x, t, **cond)
        start, goal = self.both(x, t, **cond)
        return start.toward(goal, scale if isinstance(scale, float) else like(scale, x))

    def _scale(self, t: Tensor) -> float | Tensor:
        """The scale of the whole batch, or of every sample, (B,)."""
        if self.needs is not Affine:
            return self.scale
        k = cast(Affine, self.process).schedule(t)
        ratio = k.sigma / k.alpha
        inside = (ratio >= self.low) & (ratio <= self.high)
        if t.ndim == 0:
            return self.scale if inside else 1.0
        return torch.where(inside, self.scale, 1.0)
