"""The Euler-Maruyama method on the SDEs that share the marginals of a diffusion."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Literal, cast

import torch
from torch import Tensor

from diffusion_cli.denoiser import Denoiser
from diffusion_cli.processes import Process
from diffusion_cli.processes.affine import Diffusion
from diffusion_cli.rng import Rng
from diffusion_cli.samplers import Grid, Sampler, samplers
from diffusion_cli.samplers.langevin import SIGMA_MAX, demand_signal, euler_maruyama
from diffusion_cli.settings import require


@samplers("euler_maruyama")
class EulerMaruyama(Sampler):
    """Euler-Maruyama on the reverse-time SDEs of every noise kappa.

    dx = (v - kappa^2 score / 2) dt + kappa dw,   v = f x - g^2 score / 2
    kappa = noise g;   or kappa^2 = 2 noise^2 sigma;   or kappa^2 = 2 noise^2

    All of them have the marginals of the path: noise 0 is the probability-flow ODE,
    noise 1 with spread `diffusion` Anderson's reverse SDE. The steps are those of the
    grid, and the last one returns the belief. Where alpha vanishes (flow matching) g is
    infinite at t = 1, and the other spreads, SiT's w, are not. The method is explicit:
    below about 25 steps it is unstable on EDM's path, where g^2 / sigma^2 is large.

    Reference: Anderson 1982, "Reverse-time diffusion equation models"; Song et al.
        2021, eq. 6, arXiv:2011.13456; Ma et al. 2024, section 2.2, arXiv:2401.08740.

    Args:
        steps: Number of steps; one evaluation each.
        grid: Where the steps fall.
        noise: Factor of kappa; 0 is deterministic.
        spread: What kappa is proportional to.
    """

    def __init__(
        self,
        grid: Grid,
        steps: int = 1000,
        noise: float = 1.0,
        spread: Literal["diffusion", "sigma", "constant"] = "diffusion",
    ) -> None:
        require(steps >= 1, "steps", steps, ">= 1")
        require(0 <= noise <= 100, "noise", noise, "in [0, 100]")
        self.grid, self.steps, self.noise, self.spread = grid, steps, noise, spread

    @property
    def needs(self) -> type[Process]:
        return Diffusion

    @property
    def noisy(self) -> bool:
        return self.noise > 0

    def check(self, process: Process) -> None:
        if self.noise and self.spread == "diffusion":
            hint = f"sampler.spread=sigma, or {SIGMA_MAX}"
            diffusion = cast(Diffusion, process)
            demand_signal(
                self.grid, diffusion, self.steps, "the noise g is infinite", hint
            )

    @torch.no_grad()
    def trajectory(self, denoiser: Denoiser, x: Tensor, rng: Rng) -> Iterator[Tensor]:
        process = cast(Diffusion, denoiser.process)
        for i, (t, s) in enumerate(pairwise(self.grid(process, self.steps))):
            q = denoiser(x, t)
            if s == 0:
                x = q.mean
            else:
                normal = rng.at(i).child("step").normal(x.shape, x.dtype)
                square = self.square(process, t)
                x = euler_maruyama(process, q, x, t, s, square, normal)
            yield x

    def square(self, process: Diffusion, t: Tensor) -> Tensor:
        """kappa(t)^2, the shape of `t`."""
        if self.noise == 0:
            return torch.zeros_like(t)
        if self.spread == "diffusion":
            return self.noise**2 * process.diffusion(t)
        sigma = process.schedule(t).sigma
        w = sigma if self.spread == "sigma" else torch.ones_like(sigma)
        return 2 * self.noise**2 * w
