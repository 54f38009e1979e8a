"""PFGM's reading of a network: the direction of an electrostatic field."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor

from diffusion_cli.core import Point, Spec
from diffusion_cli.parametrisations import Parametrisation, parametrisations
from diffusion_cli.processes import Process
from diffusion_cli.processes.affine import Affine, beside
from diffusion_cli.settings import require

LEAST = 1e-3  # of the share of z in a field, which a network may not predict below


@parametrisations("field")
class Field(Parametrisation):
    """F is a normalised field in d + 1 dimensions, one channel more than the data.

    F = -sqrt(d) (y - x_0, z) / (|(y - x_0, z)| + gamma),   y = x / alpha
    x_0 = y - z F_x / F_z,   z = sigma / alpha

    Below z = `analytic` the component F_z is not read but computed: |F_x| alone tells
    |y - x_0|. The network sees y / sqrt(1 + z^2 + |y|^2 / d) and log(z) / 4, since the
    states of PFGM have no variance. A state may be 1 / `LEAST` times z away from data.

    Reference: Xu et al. 2022, eq. 6 and appendix B.2, arXiv:2209.11178.

    Args:
        gamma: What keeps the norm of a weak field below 1.
        analytic: The z below which F_z is computed.
    """

    needs = Affine
    own = True

    def __init__(self, gamma: float = 5.0, analytic: float = 5.0) -> None:
        require(gamma > 0, "gamma", gamma, "> 0")
        require(analytic >= 0, "analytic", analytic, ">= 0")
        self.gamma, self.analytic = gamma, analytic

    def fits(self, process: Process) -> str | None:
        if cast(Affine, process).bounded:
            return None
        return "is undefined at t = 1, where this path keeps no signal (alpha = 0)"

    def out(self, state: Spec) -> tuple[int, ...]:
        return (state.shape[0] + 1, *state.shape[1:])

    def inputs(self, x: Tensor, t: Tensor, process: Process) -> tuple[Tensor, Tensor]:
        y, z, log_z = charted(x, t, process)
        square = y.flatten(1).square().mean(1).reshape(-1, *[1] * (x.ndim - 1))
        return y / (1 + z**2 + square).sqrt(), log_z / 4

    def posterior(self, out: Tensor, x: Tensor, t: Tensor, process: Process) -> Point:
        y, z, _ = charted(x, t, process)
        d, (across, along) = y[0].numel(), parts(out)
        size = across.norm(dim=1) / math.sqrt(d)  # of F_x, less than 1
        share = (1 - size**2).clamp(min=LEAST**2)
        flat = z.expand(len(y), *[1] * (y.ndim - 1)).flatten()  # (B,)
        root = ((size * self.gamma) ** 2 + share * flat**2).sqrt()
        near = (self.gamma + root) / share / math.sqrt(d)  # |y - x_0| / |F_x|
        far = flat / (-along).clamp(min=LEAST * math.sqrt(d))
        reach = torch.where(flat < self.analytic, near, far)[:, None]
        return Point(y + (reach * across).reshape(y.shape))

    def errors(
        self, out: Tensor, mean: Tensor, x: Tensor, t: Tensor, process: Process
    ) -> Tensor:
        y, z, _ = charted(x, t, process)
        flat = z.expand(len(y), *[1] * (y.ndim - 1)).flatten()[:, None]
        gap = torch.cat(((y - mean).flatten(1), flat), 1)
        norm = gap.norm(dim=1, keepdim=True)
        wanted = -math.sqrt(y[0].numel()) * gap / (norm + self.gamma)
        across, along = parts(out)
        found = torch.cat((across, along[:, None]), 1)
        gaps: Tensor = found - wanted
        return gaps.square().mean(1)


def charted(x: Tensor, t: Tensor, process: Process) -> tuple[Tensor, Tensor, Tensor]:
    """y = x / alpha; z = sigma / alpha, shaped to multiply y; log z, shaped like t."""
    affine = cast(Affine, process)
    k = affine.at(t, x)
    return x / k.alpha, beside(k.sigma / k.alpha, x), affine.log_ratio(t)


def parts(out: Tensor) -> tuple[Tensor, Tensor]:
    """F_x (B, d), and F_z (B,), the mean of the last channel."""
    return out[:, :-1].flatten(1), out[:, -1:].flatten(1).mean(1)
