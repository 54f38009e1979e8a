"""How fast tokens are lost: alpha(t), the probability that one is still itself."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from diffusion_cli.processes.tokens import Kept, Survival, survivals
from diffusion_cli.settings import require


@survivals("linear")
class Linear(Survival):
    """alpha = 1 - t: log-linear in MDLM's words, the limit of beta = 1 / (T - t + 1).

    Reference: Sahoo et al. 2024, appendix E, arXiv:2406.07524.
    """

    def __call__(self, t: Tensor) -> Kept:
        return Kept(1 - t.double(), -torch.ones_like(t.double()))

    def time(self, alpha: Tensor) -> Tensor:
        return 1 - alpha


@survivals("cosine")
class Cosine(Survival):
    """alpha = 1 - sin(pi t / 2): few tokens are still there at late times.

    Reference: Chang et al. 2022, section 3.3, arXiv:2202.04200.
    """

    def __call__(self, t: Tensor) -> Kept:
        angle = math.pi / 2 * t.double()
        # 2 sin^2(pi (1 - t) / 4) is exactly 0 at t = 1
        alpha = 2 * (math.pi / 4 * (1 - t.double())).sin().square()
        return Kept(alpha, -math.pi / 2 * angle.cos())

    def time(self, alpha: Tensor) -> Tensor:
        return (1 - alpha).clamp(0, 1).asin() * 2 / math.pi


@survivals("squared_cosine")
class SquaredCosine(Survival):
    """alpha = cos^2(pi t / 2).

    Reference: Hoogeboom et al. 2021, section 4, arXiv:2102.05379, after Nichol and
        Dhariwal 2021, eq. 17, arXiv:2102.09672, without its offset.
    """

    def __call__(self, t: Tensor) -> Kept:
        angle, rest = math.pi / 2 * t.double(), math.pi / 2 * (1 - t.double())
        return Kept(rest.sin().square(), -math.pi * rest.sin() * angle.sin())

    def time(self, alpha: Tensor) -> Tensor:
        return alpha.clamp(0, 1).sqrt().acos() * 2 / math.pi


@survivals("polynomial")
class Polynomial(Survival):
    """alpha = 1 - t^power.

    Reference: Chang et al. 2022, section 3.3, arXiv:2202.04200.

    Args:
        power: 1 is `linear`; larger powers keep tokens longer.
    """

    def __init__(self, power: float = 2.0) -> None:
        require(power > 0, "power", power, "> 0")
        self.power = power

    def __call__(self, t: Tensor) -> Kept:
        t = t.double()
        return Kept(1 - t**self.power, -self.power * t ** (self.power - 1))

    def time(self, alpha: Tensor) -> Tensor:
        return (1 - alpha) ** (1 / self.power)
