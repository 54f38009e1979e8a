"""The multivariate Student-t law in its chi-square form. Registers nothing.

n = g / sqrt(h / D),   g ~ N(0, I_d),   h ~ chi^2_D

The density is proportional to (|n|^2 + D)^(-(d + D) / 2). Near |n| = infinity the beta
form that is usually published loses its digits (1 - B cancels); this one does not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from diffusion_cli.rng import Rng

LARGE = 1e6  # a shape whose law is nearly normal
LEAST = 0.5  # degrees of freedom whose draws float32 holds
STIRLING = 1e3  # an argument at which three terms give all digits
ROUNDS = 6  # of Newton; four reach 1e-11 for D >= 0.3


def gamma(u: Tensor, shape: float) -> Tensor:
    """The quantile of the gamma law of unit scale: float64, to the last digits.

    Beyond `LARGE` the incomplete gamma function loses its digits (1e-6 at 5e6), and the
    cube of Wilson and Hilferty has 1e-9.

    Newton's method on log P and log(1 - P) as functions of log x. Both are concave, so
    from the left of the first and the right of the second every step comes closer;
    after one step any start is there.
    """
    u = u.double()
    rest, a = 1 - u, torch.full_like(u, shape)
    low = u < 0.5
    normal = torch.special.ndtri(u)  # Wilson and Hilferty 1931, for large shapes
    cube = 1 - 1 / (9 * shape) + normal / (3 * math.sqrt(shape))
    if shape > LARGE:
        large: Tensor = shape * cube**3
        return large
    small = (u.log() + math.lgamma(shape + 1)) / shape  # P ~ x^a / Gamma(a + 1)
    y = torch.where(cube > 0.3, math.log(shape) + 3 * cube.clamp(min=0.3).log(), small)
    for _ in range(ROUNDS):
        x = y.exp()
        below = torch.special.gammainc(a, x).clamp(min=1e-300)
        above = torch.special.gammaincc(a, x).clamp(min=1e-300)
        density = (shape * y - x - math.lgamma(shape)).exp()  # of log x
        tail = torch.where(low, below, above)
        gap = torch.where(low, u.log() - tail.log(), tail.log() - rest.log())
        step = gap * tail / density.clamp(min=1e-300)
        y = y + step.clamp(-2, 2)
    return y.exp()


def _growth(x: float, a: float) -> float:
    """log(Gamma(x + a) / (Gamma(x) x^a)); by Stirling's series where x is large."""
    if x < STIRLING:
        return math.lgamma(x + a) - math.lgamma(x) - a * math.log(x)
    rest = 1 / (12 * (x + a)) - 1 / (12 * x)
    rest -= 1 / (360 * (x + a) ** 3) - 1 / (360 * x**3)
    return (x + a - 0.5) * math.log1p(a / x) - a + rest


def noise(shape: Sequence[int], D: float, rng: Rng, dtype: torch.dtype) -> Tensor:
    """Student-t noise of D degrees of freedom, a row per sample; (B, ...)."""
    normal = rng.child("noise").normal(shape, torch.float64)
    u = rng.child("chi2").uniform((len(normal), 1)).flatten()
    root = (2 * gamma(u, D / 2) / D).sqrt()  # sqrt(h / D)
    return (normal / root.reshape(-1, *[1] * (normal.ndim - 1))).to(dtype)


def log_kernel(square: Tensor, d: int, D: float) -> Tensor:
    """log p(n) in nats from |n|^2, any shape."""
    norm = _growth(D / 2, d / 2) - d / 2 * math.log(2 * math.pi)
    return norm - (D + d) / 2 * torch.log1p(square / D)
