"""Data as charges: PFGM and PFGM++."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from diffusion_cli.processes import processes, student
from diffusion_cli.processes.affine import Schedule
from diffusion_cli.processes.rays import Charged
from diffusion_cli.rng import Rng
from diffusion_cli.settings import require


@processes("electrostatic")
class Electrostatic(Charged):
    """Charges in d + D dimensions, whose field lines lead to the data: PFGM, PFGM++.

    E(x, r) = E_x0[(x - x_0, r) / (|x - x_0|^2 + r^2)^((d + D) / 2)]
    dx/dr = E_x / E_r = (x - E[x_0 | x, r]) / r,   r = sigma sqrt(D)

    A field line is the ODE of x_t = alpha x_0 + sigma n with Student-t noise of D
    degrees of freedom. D = 1 is PFGM with z = sigma, D -> infinity Gaussian diffusion.
    The noise is not normal, its score not linear in the belief: Langevin steps, SDEs,
    churn, eta > 0 and guidance by scores are not defined.

    Reference: Xu et al. 2023, eq. 4 and 5, arXiv:2302.04265; Xu et al. 2022,
        arXiv:2209.11178.

    Args:
        schedule: alpha(t) and sigma(t).
        D: Dimensions added to those of the data; degrees of freedom of the noise.
        reach: Largest norm of x_1 in units of sqrt(pi d / 2) sigma, where the states of
            `poisson_batch` end; larger ones are drawn in. null is the exact prior.
    """

    def __init__(
        self, schedule: Schedule, D: float = 128.0, reach: float | None = None
    ) -> None:
        super().__init__(schedule)
        require(D >= student.LEAST, "D", D, f">= {student.LEAST}")
        require(reach is None or reach > 0, "reach", reach, "> 0 or null")
        self.D, self.reach = D, reach

    def prior(self, shape: Sequence[int], rng: Rng) -> Tensor:
        x = super().prior(shape, rng)
        if self.reach is None:
            return x
        flat = x.flatten(1)
        most = self.reach * math.sqrt(math.pi * flat.shape[1] / 2) * self.end.sigma
        norm = flat.norm(dim=1).clamp(min=1e-30).reshape(-1, *[1] * (x.ndim - 1))
        shrunk: Tensor = x * (most / norm).clamp(max=1).to(x.dtype)
        return shrunk

    def noise(self, x0: Tensor, rng: Rng) -> Tensor:
        return student.noise(x0.shape, self.D, rng, x0.dtype)

    def log_kernel(self, square: Tensor, d: int) -> Tensor:
        return student.log_kernel(square, d, self.D)
