"""From grey levels to densities: noise that fills the cells. Registers nothing."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from diffusion_cli.processes.affine import Affine
from diffusion_cli.rng import Rng

Filling = Literal["uniform", "truncated_normal"]
THIRD = 1 / 3  # of the spacing of levels: less noise tells nothing about the level


def start(process: Affine, spacing: float | None, floor: float | None) -> Tensor:
    """The time at which a likelihood starts, ().

    The floor that was asked for, or the smallest trained time; data with levels start
    no earlier than sigma / alpha = spacing / 3. A model that never learnt that there
    are levels pays for every bit of noise below them, and a bound holds from any time.
    """
    if floor is not None:
        return torch.tensor(floor, dtype=torch.float64)
    first = torch.tensor(process.span[0], dtype=torch.float64)
    if spacing is None:
        return first
    noise = torch.tensor(THIRD * spacing, dtype=torch.float64)
    return torch.maximum(first, process.schedule.time(noise))


def filled(
    x0: Tensor, spacing: float, filling: Filling, noise: float, rng: Rng
) -> tuple[Tensor, Tensor]:
    """A point u in the cell of every level, and log q(u | x0) per sample, (B,).

    uniform:           u = x0 + spacing (w - 1/2),   w ~ U(0, 1)
    truncated_normal:  u = x0 + noise z,   z ~ N(0, 1) with |z| < spacing / (2 noise)

    Then P(x0) = E_q[p(u) / q(u | x0)] for a model density p, whatever q.

    Reference: Theis et al. 2016, section 3.1, arXiv:1511.01844 (uniform); Zheng et al.
        2023, "Improved techniques for maximum likelihood estimation for diffusion
        ODEs", arXiv:2305.03935 (truncated normal).
    """
    w = rng.child("dequantise").uniform(x0.shape)
    d = x0[0].numel()
    if filling == "uniform":
        log_q = w.new_full((len(x0),), -d * math.log(spacing))
        return x0.double() + spacing * (w - 0.5), log_q
    mass = math.erf(spacing / (2 * noise) / math.sqrt(2))  # of the normal in a cell
    z = torch.special.ndtri(0.5 + mass * (w - 0.5))
    volume = 0.5 * math.log(2 * math.pi) + math.log(noise * mass)
    return x0.double() + noise * z, -(z.square() / 2 + volume).flatten(1).sum(1)


def decoded(x0: Tensor, x: Tensor, spacing: float, levels: int, noise: float) -> Tensor:
    """-log P(x0 | x) per sample in nats, for x = x0 + noise n and equal priors.

    P(x0 | x) is a softmax of -(x - level)^2 / (2 noise^2) over all levels, per
    coordinate.

    Reference: Kingma et al. 2021, section 3, arXiv:2107.00630.
    """

    def energy(level: Tensor | float) -> Tensor:
        return -((x - level) / noise).square() / 2

    total = torch.full_like(x, -math.inf)
    for level in range(levels):
        total = torch.logaddexp(total, energy(level * spacing - 1))
    return (total - energy(x0)).flatten(1).sum(1)
