"""Grids in sigma / alpha: what they share. Registers nothing."""

from __future__ import annotations

from abc import abstractmethod
from typing import cast

import torch
from torch import Tensor

from diffusion_cli.processes import Process
from diffusion_cli.processes.affine import Affine
from diffusion_cli.samplers import Grid
from diffusion_cli.settings import require

LARGEST = 80.0  # EDM's sigma_max, where a path itself knows no largest sigma / alpha


def strictly_falling(nodes: Tensor, steps: int) -> Tensor:
    """The nodes with the final 0, or an error if two of them fell together."""
    times = torch.cat((nodes, torch.zeros(1, dtype=torch.float64)))
    if bool((times.diff() >= 0).any()):
        raise ValueError(f"steps: {steps} are more than this grid can tell apart")
    return times


class NoiseGrid(Grid):
    """Even steps in a function of sigma / alpha, between the ends of the process.

    The first time is the end of the process itself, also where sigma / alpha is
    infinite there and the steps only count from sigma_max.
    """

    needs = Affine

    def __init__(self, sigma_min: float | None, sigma_max: float | None) -> None:
        require(
            sigma_min is None or sigma_min > 0, "sigma_min", sigma_min, "> 0 or null"
        )
        above = sigma_max is None or sigma_max > (sigma_min or 0)
        require(above, "sigma_max", sigma_max, "> sigma_min or null")
        self.least, self.most = sigma_min, sigma_max

    def __call__(self, process: Process, steps: int) -> Tensor:
        schedule = cast(Affine, process).schedule
        scales = schedule(torch.tensor(process.span, dtype=torch.float64))
        least, most = (float(ratio) for ratio in scales.sigma / scales.alpha)
        least = self.least or least
        most = self.most or (most if scales.alpha[1] > 0 else LARGEST)
        nodes = schedule.time(self.ratios(least, most, steps))
        if self.most is None:
            nodes[0] = process.span[1]
        return strictly_falling(nodes, steps)

    @abstractmethod
    def ratios(self, least: float, most: float, steps: int) -> Tensor:
        """`steps` falling values of sigma / alpha from `most` to `least`, float64."""


class Warped(NoiseGrid):
    """Steps of a given density over log(sigma / alpha).

    u_i = i / (steps - 1) are even quantiles of a density whose logarithm is linear
    between its knots; a constant one is `log_sigma`, and one that falls by
    log(most / least) / rho toward the data is `rho`.

    Args:
        knots: Logarithms of the density, (K,), even in log(sigma / alpha) from the most
            to the least noise; they may differ by a constant.
    """

    FINE = 1024  # points of the cumulated density

    def __init__(self, knots: Tensor) -> None:
        super().__init__(None, None)
        self.knots = knots

    def ratios(self, least: float, most: float, steps: int) -> Tensor:
        place = torch.linspace(0, 1, self.FINE, dtype=torch.float64)
        own = torch.linspace(0, 1, len(self.knots), dtype=torch.float64)
        density = _linear(place, own, self.knots.double().cpu()).exp()
        mass = torch.cumulative_trapezoid(density, place)
        mass = torch.cat((mass.new_zeros(1), mass / mass[-1]))
        even = torch.linspace(0, 1, steps, dtype=torch.float64)
        share = _linear(even, mass, place)
        return most * (least / most) ** share


def _linear(x: Tensor, nodes: Tensor, values: Tensor) -> Tensor:
    """The values at `nodes`, which rise, linear in between, at `x`."""
    right = torch.searchsorted(nodes, x).clamp(1, len(nodes) - 1)
    low, high = nodes[right - 1], nodes[right]
    share = (x - low) / (high - low)
    return values[right - 1] + share * (values[right] - values[right - 1])
