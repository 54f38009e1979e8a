"""Guidance by any differentiable energy."""

from __future__ import annotations

from torch import Tensor

from diffusion_cli.denoiser import Denoiser
from diffusion_cli.guidance import Energy, guidances
from diffusion_cli.guidance.gradients import At, Tilt


@guidances("energy")
class EnergyGuidance(Tilt):
    """Samples from p(x) exp(-scale E(x)) / Z instead of p(x), to first order.

    E[x_0 | x_t] - scale (sigma^2 / alpha) grad_x E

    `at=clean` is E of E[x_0 | x_t], differentiated through the model; `at=noisy` is E
    of x_t itself, for an energy that was made for noisy samples.

    Reference: Liu et al. 2021, section 3, arXiv:2112.05744; Chung et al. 2023,
        section 3.2, arXiv:2209.14687.

    Args:
        energy: What is wanted.
        scale: How much.
        at: What the energy is asked about.
    """

    def __init__(
        self, denoiser: Denoiser, energy: Energy, scale: float = 1.0, at: At = "clean"
    ) -> None:
        super().__init__(denoiser, scale, at)
        self.energy = energy

    def noisy(self, x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        return -self.energy(x)  # type: ignore[no-any-return]

    def clean(self, x0: Tensor, **cond: Tensor) -> Tensor:
        return -self.energy(x0)  # type: ignore[no-any-return]
