"""Grids: where the steps fall. All end at exactly 0, after the first time trained."""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor

from diffusion_cli.processes import Process
from diffusion_cli.samplers import Grid, grids
from diffusion_cli.samplers.noise_grid import NoiseGrid, strictly_falling
from diffusion_cli.settings import require


class TimeGrid(Grid):
    """Even steps in a function of time, at times that a discrete process knows."""

    def __call__(self, process: Process, steps: int) -> Tensor:
        low, high = (self.warp(edge) for edge in process.span)
        u = torch.linspace(high, max(low, high / steps), steps, dtype=torch.float64)
        nodes = self.unwarp(u)
        nodes[0] = process.span[1]
        if process.levels:
            known = process.levels
            require(steps <= known, "steps", steps, f"<= {known}, the times it knows")
            nodes = (nodes * known).round().clamp(min=1) / known
        return strictly_falling(nodes, steps)

    @abstractmethod
    def warp(self, t: float) -> float:
        """The variable in which the steps are even."""

    @abstractmethod
    def unwarp(self, u: Tensor) -> Tensor:
        """The inverse of `warp`."""


@grids("uniform")
class Uniform(TimeGrid):
    """Even steps in t. On EDM's process this is the grid of EDM.

    Reference: Song et al. 2021, section 4.2 (linear), arXiv:2010.02502.
    """

    def warp(self, t: float) -> float:
        return t

    def unwarp(self, u: Tensor) -> Tensor:
        return u


@grids("quadratic")
class Quadratic(TimeGrid):
    """Even steps in sqrt(t): t_i proportional to i^2.

    Reference: Song et al. 2021, section 4.2 (quadratic), arXiv:2010.02502.
    """

    def warp(self, t: float) -> float:
        return math.sqrt(t)

    def unwarp(self, u: Tensor) -> Tensor:
        return u**2


@grids("ddim")
class Stride(Grid):
    """DDIM's integer stride over T discrete times: 1 + i (T // steps), i < steps.

    The first of them lies below T, where the prior is used all the same.

    Reference: Dhariwal and Nichol 2021, "ddimN", arXiv:2105.05233.

    Args:
        levels: T for a process that knows all times; null takes the process's own.
    """

    def __init__(self, levels: int | None = None) -> None:
        require(levels is None or levels >= 1, "levels", levels, ">= 1 or null")
        self.levels = levels

    def __call__(self, process: Process, steps: int) -> Tensor:
        known = self.levels or process.levels
        if known is None:
            raise ValueError("levels: the process knows all times; give grid.levels")
        require(steps <= known, "steps", steps, f"<= {known}, the times it knows")
        first = 1 + torch.arange(steps, dtype=torch.float64) * (known // steps)
        return strictly_falling(first.flip(0) / known, steps)


@grids("rho")
class Rho(NoiseGrid):
    """Even steps in (sigma / alpha)^(1 / rho).

    Reference: Karras et al. 2022, eq. 5, arXiv:2206.00364.

    Args:
        rho: 1 is even in sigma; large values tend to `log_sigma`.
        sigma_min: Smallest sigma / alpha; null takes the process's own.
        sigma_max: Largest sigma / alpha; null takes the process's own.
    """

    def __init__(
        self,
        rho: float = 7.0,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
    ) -> None:
        super().__init__(sigma_min, sigma_max)
        require(rho >= 0.1, "rho", rho, ">= 0.1")
        self.rho = rho

    def ratios(self, least: float, most: float, steps: int) -> Tensor:
        ends = (most ** (1 / self.rho), least ** (1 / self.rho))
        return torch.linspace(*ends, steps, dtype=torch.float64) ** self.rho


@grids("log_sigma")
class LogSigma(NoiseGrid):
    """Even steps in log(sigma / alpha).

    Reference: Lu et al. 2022, section 3.4, arXiv:2206.00927.

    Args:
        sigma_min: Smallest sigma / alpha; null takes the process's own.
        sigma_max: Largest sigma / alpha; null takes the process's own.
    """

    def __init__(
        self, sigma_min: float | None = None, sigma_max: float | None = None
    ) -> None:
        super().__init__(sigma_min, sigma_max)

    def ratios(self, least: float, most: float, steps: int) -> Tensor:
        ends = (math.log(most), math.log(least))
        return torch.linspace(*ends, steps, dtype=torch.float64).exp()


@grids("asinh")
class Asinh(NoiseGrid):
    """Even steps in asinh(sigma / (alpha scale)).

    They are even in log(sigma / alpha) far above `scale`, in sigma / alpha far below.
    The step to 0 is no shorter than the others: of a few, it begins above `sigma_min`.

    No reference: it is our variable of `eab`.

    Args:
        scale: sigma / alpha below which steps are even in it.
        sigma_min: Smallest sigma / alpha; null takes the process's own.
        sigma_max: Largest sigma / alpha; null takes the process's own.
    """

    def __init__(
        self,
        scale: float = 0.025,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
    ) -> None:
        super().__init__(sigma_min, sigma_max)
        require(1e-9 <= scale <= 1e9, "scale", scale, "1e-9 to 1e9")
        self.scale = scale

    def ratios(self, least: float, most: float, steps: int) -> Tensor:
        top, low = math.asinh(most / self.scale), math.asinh(least / self.scale)
        places = torch.linspace(top, max(low, top / steps), steps, dtype=torch.float64)
        return self.scale * places.sinh()
