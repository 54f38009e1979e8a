"""The variance of improved DDPM: somewhere between the small and the large one."""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion_cli.parametrisations import Parametrisation, parametrisations
from diffusion_cli.parametrisations.second import Second
from diffusion_cli.processes.affine import Diffusion, like
from diffusion_cli.settings import require


@parametrisations("learned")
class Learned(Second):
    """The second output nu chooses the variance of one step, between its two extremes.

    log var = f log large + (1 - f) log small,   f = (nu + 1) / 2,   t -> s = t - 1/T
    large   = sigma_t^2 - (alpha_t sigma_s / alpha_s)^2
    small   = sigma_s^2 (1 - (alpha_t sigma_s / alpha_s sigma_t)^2)
    C       = (var - small) / gamma^2
    gamma   = alpha_s (1 - (alpha_t sigma_s / alpha_s sigma_t)^2)

    `small` in var is taken no earlier than the second of the T times, as published: it
    vanishes at the first. C is the variance of x_0 that makes the step's variance var.

    A sampler that takes fewer steps keeps C and so adds gamma^2 C over its own, longer
    step; the paper keeps f and spreads it over the extremes of that step instead. Both
    are the same at T steps, and at f = 0 and 1 on unit normal data.

    Reference: Nichol and Dhariwal 2021, eq. 15, arXiv:2102.09672.

    Args:
        mean: How the first output is read.
        levels: Number of times T; null takes the process's, or 1000.
        bound: Largest variance C, ((high - low) / 2)^2 for data in [low, high].
    """

    second = "variance"

    def __init__(
        self,
        mean: Parametrisation,
        levels: int | None = None,
        bound: float | None = None,
    ) -> None:
        super().__init__(mean, bound)
        require(levels is None or levels >= 2, "levels", levels, ">= 2")
        self.levels = levels

    def variance(
        self, second: Tensor, mean: Tensor, x: Tensor, t: Tensor, process: Diffusion
    ) -> Tensor:
        step = 1 / (self.levels or process.levels or 1000)
        small, large, square = _extremes(process, t, step)
        least, _, _ = _extremes(process, t.clamp(min=2 * step), step)
        # in float64, as small and large may differ in the last digits of a float32 only
        rise = like((large / least).log(), x)
        scale, rest = like(least / square, x), like((least - small) / square, x)
        c = scale * torch.expm1((second + 1) / 2 * rise) + rest
        # no belief is surer than sure; the gradient passes, to lead back from there
        kept = c.detach().clamp(min=0)
        if self.bound is not None:
            kept = kept.clamp(max=self.bound)
        return c + (kept - c.detach())


def _extremes(
    process: Diffusion, t: Tensor, step: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The small and the large variance of the step, and gamma^2; float64."""
    a, b = process.scales(t), process.schedule((t - step).clamp(min=0))
    ratio = (a.alpha * b.sigma / (b.alpha * a.sigma)) ** 2
    large = a.sigma**2 - (a.alpha * b.sigma / b.alpha) ** 2
    return b.sigma**2 * (1 - ratio), large, (b.alpha * (1 - ratio)) ** 2
