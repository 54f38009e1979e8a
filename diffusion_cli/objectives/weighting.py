"""Weights on the squared error of x_0; SNR = alpha^2 / sigma^2.

Each name is a training target: the error of eps is SNR times that of x_0, and so on
(Hang et al. 2023, table 1; Karras et al. 2022, table 1).
"""

from __future__ import annotations

from abc import abstractmethod
from typing import cast

import torch
from torch import Tensor

from diffusion_cli.objectives import Weight, weights
from diffusion_cli.processes import Process
from diffusion_cli.processes.affine import Affine, Scales
from diffusion_cli.settings import require


class AffineWeight(Weight):
    """A weight that is a function of the scales of an affine path."""

    needs = Affine

    def __call__(self, process: Process, t: Tensor) -> Tensor:
        return self.of(cast(Affine, process).scales(t))

    @abstractmethod
    def of(self, k: Scales) -> Tensor:
        """w(t) from the scales at t, (B,)."""


def snr(k: Scales) -> Tensor:
    """Signal-to-noise ratio alpha^2 / sigma^2."""
    return (k.alpha / k.sigma) ** 2


@weights("simple")
class Simple(AffineWeight):
    """w = SNR: the plain squared error of eps, DDPM's L_simple.

    Reference: Ho et al. 2020, eq. 14, arXiv:2006.11239.
    """

    def of(self, k: Scales) -> Tensor:
        return snr(k)


@weights("x0")
class Uniform(Weight):
    """w = 1: the plain squared error of x_0; for any process.

    Reference: Salimans and Ho 2022, section 4, arXiv:2202.00512.
    """

    def __call__(self, process: Process, t: Tensor) -> Tensor:
        return torch.ones_like(t)


@weights("snr_plus_one")
class SnrPlusOne(AffineWeight):
    """w = SNR + 1: the plain squared error of v.

    Reference: Salimans and Ho 2022, section 4, arXiv:2202.00512.
    """

    def of(self, k: Scales) -> Tensor:
        return snr(k) + 1


@weights("min_snr")
class MinSnr(AffineWeight):
    """w = min(SNR, gamma).

    Reference: Hang et al. 2023, eq. 6, arXiv:2303.09556.

    Args:
        gamma: The cap; 5 is the paper's.
    """

    def __init__(self, gamma: float = 5.0) -> None:
        require(gamma > 0, "gamma", gamma, "> 0")
        self.gamma = gamma

    def of(self, k: Scales) -> Tensor:
        return snr(k).clamp(max=self.gamma)


@weights("trunc_snr")
class TruncSnr(AffineWeight):
    """w = max(SNR, 1).

    Reference: Salimans and Ho 2022, section 4, arXiv:2202.00512.
    """

    def of(self, k: Scales) -> Tensor:
        return snr(k).clamp(min=1)


@weights("edm")
class EDM(AffineWeight):
    """w = SNR + 1 / sd^2: unit weight on the output of EDM's preconditioned network.

    Reference: Karras et al. 2022, table 1, arXiv:2206.00364.

    Args:
        data_std: Standard deviation sd of the data.
    """

    def __init__(self, data_std: float = 0.5) -> None:
        require(data_std > 0, "data_std", data_std, "> 0")
        self.data_std = data_std

    def of(self, k: Scales) -> Tensor:
        return snr(k) + 1 / self.data_std**2


@weights("likelihood")
class Likelihood(AffineWeight):
    """w = -SNR'(t) / 2: the continuous-time bound on -log p(x_0).

    -SNR' / 2 = alpha (alpha sigma' - alpha' sigma) / sigma^3

    Reference: Kingma et al. 2021, eq. 17, arXiv:2107.00630.
    """

    def of(self, k: Scales) -> Tensor:
        return k.alpha * (k.alpha * k.dsigma - k.dalpha * k.sigma) / k.sigma**3


@weights("velocity")
class Velocity(AffineWeight):
    """w = ((alpha sigma' - alpha' sigma) / sigma)^2: the plain error of the velocity.

    Reference: Lipman et al. 2023, eq. 14, arXiv:2210.02747.
    """

    def of(self, k: Scales) -> Tensor:
        return ((k.alpha * k.dsigma - k.dalpha * k.sigma) / k.sigma) ** 2
