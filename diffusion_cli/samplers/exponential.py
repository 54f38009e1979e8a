"""Exponential multistep methods for the probability-flow ODE."""

from __future__ import annotations

from torch import Tensor

from diffusion_cli.processes.affine import Numbers
from diffusion_cli.samplers import Grid, samplers
from diffusion_cli.samplers.multistep import Multistep


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

    def node(self, past: float, now: float, later: float) -> float:
        return later - past

    def factors(self, a: Numbers, b: Numbers) -> tuple[float, float]:
        return b.sigma / a.sigma, b.alpha


@samplers("eab")
class EAB(Multistep):
    """Exponential Adams-Bashforth: a polynomial through the beliefs about the noise.

    x_s = (alpha_s / alpha_t) x_t
          - alpha_s (sigma_t / alpha_t) integral_0^h exp(-v) n(lambda_t + v) dv

    Reference: Zhang and Chen 2023, eq. 15, arXiv:2204.13902; Zhao et al. 2023,
        algorithm 1 (the correction), arXiv:2302.04867.

    Args:
        steps: Number of steps; one evaluation each.
        grid: Where the steps fall.
        order: Number of beliefs the polynomial runs through, 1 to 3; 1 is DDIM.
        correct: Repeat each step once the belief at its end is known, as UniPC does.
    """

    def __init__(
        self, grid: Grid, steps: int = 25, order: int = 3, correct: bool = False
    ) -> None:
        super().__init__(grid, steps, order, correct)

    def value(self, mean: Tensor, x: Tensor, a: Numbers) -> Tensor:
        return (x - a.alpha * mean) / a.sigma

    def node(self, past: float, now: float, later: float) -> float:
        return past - now

    def factors(self, a: Numbers, b: Numbers) -> tuple[float, float]:
        ratio = b.alpha / a.alpha
        return ratio, -ratio * a.sigma
