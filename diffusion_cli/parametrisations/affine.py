"""Six readings of a network on an affine path, x_t = alpha x_0 + sigma n.

Each is one row of a table: x_0 = a x_t + b F, with a and b functions of the time. All
see x / sqrt(alpha^2 + sigma^2), which is x_t itself on a variance-preserving path, and
the time as level, except `edm`.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import cast

from torch import Tensor

from diffusion_cli.core import Point
from diffusion_cli.parametrisations import Parametrisation, parametrisations
from diffusion_cli.processes import Process
from diffusion_cli.processes.affine import (
    Affine,
    Diffusion,
    Factor,
    Factors,
    blend,
    root,
)
from diffusion_cli.settings import require


class Reading(Parametrisation):
    """Shared by all rows; each adds `row`, how the output F stands for x_0."""

    needs = Affine

    def inputs(self, x: Tensor, t: Tensor, process: Process) -> tuple[Tensor, Tensor]:
        k = cast(Affine, process).at(t, x)
        spread = root(k.alpha**2 + k.sigma**2)
        return x if isinstance(spread, float) and spread == 1 else x / spread, t

    def posterior(self, out: Tensor, x: Tensor, t: Tensor, process: Process) -> Point:
        a, b = self.row(cast(Affine, process).at(t, x))
        return Point(blend(a, x, b, out))

    @abstractmethod
    def row(self, k: Factors) -> tuple[Factor, Factor]:
        """a and b of x_0 = a x + b F."""


class NoiseReading(Reading):
    """Readings that divide by alpha, and so are undefined where no signal is left."""

    def fits(self, process: Process) -> str | None:
        if cast(Affine, process).bounded:
            return None
        return "is undefined at t = 1, where this path keeps no signal (alpha = 0)"


@parametrisations("eps")
class Eps(NoiseReading):
    """F is the noise: x_0 = (x - sigma F) / alpha.

    Reference: Ho et al. 2020, eq. 11, arXiv:2006.11239.
    """

    def row(self, k: Factors) -> tuple[Factor, Factor]:
        return 1 / k.alpha, -k.sigma / k.alpha


@parametrisations("score")
class Score(NoiseReading):
    """F is the score times sigma, grad log p = F / sigma: x_0 = (x + sigma F) / alpha.

    Reference: Song et al. 2021, section 3.3, arXiv:2011.13456.
    """

    needs = Diffusion

    def row(self, k: Factors) -> tuple[Factor, Factor]:
        return 1 / k.alpha, k.sigma / k.alpha


@parametrisations("x0")
class Clean(Reading):
    """F is the clean sample: x_0 = F.

    Reference: Ho et al. 2020, section 3.2, arXiv:2006.11239.
    """

    def row(self, k: Factors) -> tuple[Factor, Factor]:
        return 0.0, 1.0


@parametrisations("v")
class V(Reading):
    """F is the angular velocity v = (alpha n - sigma x_0) / r, r^2 = alpha^2 + sigma^2.

    x_0 = (alpha x - sigma r F) / r^2; r = 1 on a variance-preserving path.

    Reference: Salimans and Ho 2022, appendix D, arXiv:2202.00512.
    """

    def row(self, k: Factors) -> tuple[Factor, Factor]:
        square = k.alpha**2 + k.sigma**2
        return k.alpha / square, -k.sigma / root(square)


@parametrisations("velocity")
class Velocity(Reading):
    """F is the velocity of the path, u = alpha' x_0 + sigma' n.

    x_0 = (sigma' x - sigma F) / (alpha sigma' - alpha' sigma)

    Reference: Lipman et al. 2023, eq. 13, arXiv:2210.02747.
    """

    def row(self, k: Factors) -> tuple[Factor, Factor]:
        wronskian = k.alpha * k.dsigma - k.dalpha * k.sigma
        return k.dsigma / wronskian, -k.sigma / wronskian


@parametrisations("edm")
class EDM(Reading):
    """EDM's preconditioning, for any affine path: inputs and targets of unit variance.

    x_0 = (alpha sd^2 x + sigma sd m F) / m^2,   m^2 = alpha^2 sd^2 + sigma^2

    The network sees x / m and log(sigma / alpha) / 4.

    Reference: Karras et al. 2022, table 1 and appendix B.6, arXiv:2206.00364.

    Args:
        data_std: Standard deviation sd of the data; 0.5 fits images in [-1, 1].
    """

    def __init__(self, data_std: float = 0.5) -> None:
        require(data_std > 0, "data_std", data_std, "> 0")
        self.data_std = data_std

    def inputs(self, x: Tensor, t: Tensor, process: Process) -> tuple[Tensor, Tensor]:
        affine = cast(Affine, process)
        return x / self.spread(affine.at(t, x)), affine.log_ratio(t) / 4

    def row(self, k: Factors) -> tuple[Factor, Factor]:
        spread, std = self.spread(k), self.data_std
        return k.alpha * (std / spread) ** 2, k.sigma * std / spread

    def spread(self, k: Factors) -> Factor:
        """The standard deviation m of x_t."""
        return root((k.alpha * self.data_std) ** 2 + k.sigma**2)
