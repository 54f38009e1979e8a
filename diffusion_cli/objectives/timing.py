"""Laws of the training times, each by its quantile function."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from diffusion_cli.objectives import times
from diffusion_cli.objectives.quantile import Quantile
from diffusion_cli.processes import Process
from diffusion_cli.processes.affine import Affine
from diffusion_cli.settings import require


@times("uniform")
class Uniform(Quantile):
    """Uniform over the times the process knows: 1/T .. 1 if discrete, else its span.

    Reference: Ho et al. 2020, algorithm 1, arXiv:2006.11239.

    Args:
        stratified: Spread the times of a step evenly.
    """

    def __init__(self, stratified: bool = False) -> None:
        super().__init__(stratified)

    def quantile(self, process: Process, u: Tensor) -> Tensor:
        low, high = process.span
        if process.levels:
            return ((u * process.levels).floor() + 1) / process.levels
        return low + u * (high - low)


@times("discrete")
class Discrete(Quantile):
    """Uniform over `levels` evenly spaced times of the span, whatever the process.

    Reference: Ho et al. 2020, algorithm 1, arXiv:2006.11239.

    Args:
        levels: Number of times.
        stratified: Spread the times of a step evenly.
    """

    def __init__(self, levels: int = 1000, stratified: bool = False) -> None:
        super().__init__(stratified)
        require(levels >= 1, "levels", levels, ">= 1")
        self.levels = levels

    def quantile(self, process: Process, u: Tensor) -> Tensor:
        return ((u * self.levels).floor() + 1) / self.levels


@times("logit_normal")
class LogitNormal(Quantile):
    """t = sigmoid(mean + std z): middle times more often.

    On a straight path it is `lognormal` in sigma / alpha, with the same two numbers.

    Reference: Esser et al. 2024, eq. 19, arXiv:2403.03206.

    Args:
        mean: Location of logit t.
        std: Spread of logit t.
        stratified: Spread the times of a step evenly.
    """

    def __init__(
        self, mean: float = 0.0, std: float = 1.0, stratified: bool = False
    ) -> None:
        super().__init__(stratified)
        require(std > 0, "std", std, "> 0")
        self.mean, self.std = mean, std

    def quantile(self, process: Process, u: Tensor) -> Tensor:
        return torch.sigmoid(self.mean + self.std * torch.special.ndtri(u))


@times("lognormal")
class LogNormal(Quantile):
    """log(sigma / alpha) = mean + std z: EDM's law of the noise level.

    Reference: Karras et al. 2022, table 1, arXiv:2206.00364.

    Args:
        mean: Location of log(sigma / alpha).
        std: Spread of log(sigma / alpha).
        stratified: Spread the times of a step evenly.
    """

    needs = Affine

    def __init__(
        self, mean: float = -1.2, std: float = 1.2, stratified: bool = False
    ) -> None:
        super().__init__(stratified)
        require(std > 0, "std", std, "> 0")
        self.mean, self.std = mean, std

    def quantile(self, process: Process, u: Tensor) -> Tensor:
        ratio = (self.mean + self.std * torch.special.ndtri(u)).exp()
        return cast(Affine, process).schedule.time(ratio)
