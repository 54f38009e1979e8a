"""Exponential multistep methods for reverse-time SDEs."""

from __future__ import annotations

import math

from torch import Tensor

from diffusion_cli.processes import Process
from diffusion_cli.processes.affine import Diffusion, Numbers
from diffusion_cli.rng import Rng
from diffusion_cli.samplers import Grid, samplers
from diffusion_cli.samplers.multistep import Multistep, interpolation, log_snr
from diffusion_cli.settings import require


@samplers("sde_dpmpp")
class SDEDPMPP(Multistep):
    """SDE-DPM-Solver++: a polynomial through the beliefs about x_0, and exact noise.

    x_s = (sigma_s / sigma_t) exp(-eta^2 h) x_t
          + alpha_s (1 + eta^2) integral_0^h exp(-(1 + eta^2) v) x_0(lambda_s - v) dv
          + sigma_s sqrt(1 - exp(-2 eta^2 h)) z

    This solves the reverse SDE of noise eta g exactly if the belief is polynomial in
    lambda. eta = 0 is `dpmpp`; eta = 1 with order 1 is DDPM's step of small variance.
    In law the order is 1 as soon as there is noise: differences of beliefs contain it.

    Reference: Lu et al. 2022, eq. 12 and 17, arXiv:2211.01095.

    Args:
        steps: Number of steps; one evaluation each.
        grid: Where the steps fall.
        order: Number of beliefs the polynomial runs through, 1 to 3.
        eta: Noise in units of g, the forward SDE's; 1 is Anderson's reverse SDE.
    """

    def __init__(
        self, grid: Grid, steps: int = 50, order: int = 2, eta: float = 1.0
    ) -> None:
        super().__init__(grid, steps, order)
        require(0 <= eta <= 1, "eta", eta, "in [0, 1]")
        self.eta, self.rate = eta, 1 + eta**2
        self.order = 1 if eta else order

    @property
    def needs(self) -> type[Process]:
        return Diffusion

    @property
    def noisy(self) -> bool:
        return self.eta > 0

    def decay(self, a: Numbers, b: Numbers) -> float:
        """exp(-eta^2 h), also where h is infinite."""
        fall: float = b.sigma * a.alpha / (b.alpha * a.sigma)
        return math.pow(fall, self.eta**2)

    def begin(self, x: Tensor, mean: Tensor, a: Numbers, b: Numbers) -> Tensor:
        keep, gain = self.factors(a, b)
        return keep * x + gain * mean

    def disturb(self, x: Tensor, a: Numbers, b: Numbers, rng: Rng) -> Tensor:
        if not self.eta:
            return x
        spread = b.sigma * math.sqrt(1 - self.decay(a, b) ** 2)
        return x + spread * rng.child("step").normal(x.shape, x.dtype)

    def value(self, mean: Tensor, x: Tensor, a: Numbers) -> Tensor:
        return mean

    def place(self, k: Numbers) -> float:
        return log_snr(k)

    def weights(
        self, nodes: tuple[float, ...], now: float, later: float
    ) -> tuple[float, ...]:
        behind = tuple(self.rate * (later - node) for node in nodes)
        return interpolation(behind, self.rate * (later - now))

    def factors(self, a: Numbers, b: Numbers) -> tuple[float, float]:
        return self.decay(a, b) * (b.sigma / a.sigma), b.alpha
