"""Exponential multistep methods for the probability-flow ODE."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

from torch import Tensor

from diffusion_cli.processes.affine import Numbers
from diffusion_cli.samplers import Grid, samplers
from diffusion_cli.samplers.multistep import (
    Multistep,
    Node,
    interpolation,
    log_snr,
    quadrature,
)
from diffusion_cli.settings import require

DATA = Numbers(1.0, 0.0, 0.0, 0.0)  # also where a schedule keeps some noise at t = 0


@samplers("dpmpp")
class DPMPP(Multistep):
    """DPM-Solver++ multistep: a polynomial through the beliefs about x_0.

    x_s = (sigma_s / sigma_t) x_t + alpha_s integral_0^h exp(-v) x_0(lambda_s - v) dv

    Reference: Lu et al. 2022, eq. 9, arXiv:2211.01095; Zhao et al. 2023,
        algorithm 1 (the correction), arXiv:2302.04867.

    Args:
        steps: Number of steps; one evaluation each.
        grid: Where the steps fall.
        order: Number of beliefs the polynomial runs through, 1 to 3; 1 is DDIM.
        correct: Repeat each step once the belief at its end is known, as UniPC does.
    """

    def __init__(
        self, grid: Grid, steps: int = 25, order: int = 2, correct: bool = False
    ) -> None:
        super().__init__(grid, steps, order, correct)

    def value(self, mean: Tensor, x: Tensor, a: Numbers) -> Tensor:
        return mean

    def place(self, k: Numbers) -> float:
        return log_snr(k)

    def weights(
        self, nodes: tuple[float, ...], now: float, later: float
    ) -> tuple[float, ...]:
        return interpolation(tuple(later - node for node in nodes), later - now)

    def factors(self, a: Numbers, b: Numbers) -> tuple[float, float]:
        return b.sigma / a.sigma, b.alpha


@samplers("eab")
class EAB(Multistep):
    """Exponential Adams-Bashforth: a polynomial through the beliefs about the noise.

    x_s / alpha_s = x_t / alpha_t - scale integral_{w_s}^{w_t} cosh(w) n(w) dw
    w = asinh(sigma / (alpha scale))

    Far above `scale` w is -lambda but for a constant, as in the paper; below it w is
    sigma / alpha, in which the noise is smooth down to the data, so that the last step
    is of full order too. The variable is ours.

    Reference: Zhang and Chen 2023, eq. 15, arXiv:2204.13902; Zhao et al. 2023,
        algorithm 1 (the correction), arXiv:2302.04867.

    Args:
        steps: Number of steps; one evaluation each.
        grid: Where the steps fall.
        order: Number of beliefs the polynomial runs through, 1 to 4; 1 is DDIM.
        correct: Repeat each step once the belief at its end is known, as UniPC does.
        scale: sigma / alpha below which the data are smooth.
    """

    orders = (1, 2, 3, 4)

    def __init__(
        self,
        grid: Grid,
        steps: int = 25,
        order: int = 4,
        correct: bool = False,
        scale: float = 0.04,
    ) -> None:
        super().__init__(grid, steps, order, correct)
        require(1e-9 <= scale <= 1e9, "scale", scale, "1e-9 to 1e9")
        self.scale = scale

    def value(self, mean: Tensor, x: Tensor, a: Numbers) -> Tensor:
        return (x - a.alpha * mean) / a.sigma

    def place(self, k: Numbers) -> float:
        return math.asinh(k.sigma / (k.alpha * self.scale))

    def weights(
        self, nodes: tuple[float, ...], now: float, later: float
    ) -> tuple[float, ...]:
        return _hyperbolic(nodes, later, now)

    def before(self, first: Node) -> Sequence[Node]:
        return [first._replace(at=first.at + gap) for gap in range(1, self.values)]

    def factors(self, a: Numbers, b: Numbers) -> tuple[float, float]:
        return b.alpha / a.alpha, -b.alpha * self.scale

    def finish(
        self, x: Tensor, mean: Tensor, a: Numbers, past: Sequence[Node]
    ) -> Tensor:
        return self.advance(x, a, DATA, past) if a.alpha > 0 else mean


@lru_cache(maxsize=4096)
def _hyperbolic(nodes: tuple[float, ...], low: float, high: float) -> tuple[float, ...]:
    return quadrature(nodes, low, high, math.cosh)
