"""Samples of other packages' samplers where the exact ones are known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from subjects.exact import END, LARGEST, SMALLEST, Mixture, Once, measured


def diffusers(
    scheduler: str, calls: Sequence[int] = (), small: bool = False, **settings: Any
) -> Once:
    """A scheduler around the exact noise, at the noise level that it believes in."""
    import diffusers as package

    kind = getattr(package, scheduler)
    made = kind(beta_start=1e-4, beta_end=0.02, beta_schedule="linear", **settings)
    made.set_timesteps(10)
    begin = float((1 / made.alphas_cumprod[-1] - 1).sqrt())

    def walk(problem: Mixture, noise: Tensor, calls: int) -> Tensor:
        made.set_timesteps(calls)
        alpha = (1 + begin**2) ** -0.5
        x = alpha * begin * noise
        for i, t in enumerate(made.timesteps):
            c = made.sigmas[i].double()
            alpha = (1 + c**2) ** -0.5
            mean = problem.mean(x / alpha, c)
            x = made.step((x - alpha * mean) / (alpha * c), t, x).prev_sample
        return x

    return measured(walk, begin, calls, END, small)


def azula(
    sampler: str,
    order: int,
    calls: Sequence[int] = (),
    end: float = SMALLEST,
    small: bool = False,
) -> Once:
    """A sampler on the VE path; it stops at its smallest noise, `end` or not."""
    from azula import sample
    from azula.denoise import Denoiser, DiracPosterior
    from azula.noise import VESchedule

    class Exact(Denoiser):
        def __init__(self, problem: Mixture) -> None:
            super().__init__()
            self.problem = problem
            self.schedule = VESchedule(sigma_min=SMALLEST, sigma_max=LARGEST)

        def forward(self, x_t: Tensor, t: Tensor, **more: Any) -> DiracPosterior:
            alpha, sigma = self.schedule(t)
            return DiracPosterior(self.problem.mean(x_t / alpha, sigma / alpha))

    @torch.no_grad()
    def walk(problem: Mixture, noise: Tensor, calls: int) -> Tensor:
        kind = getattr(sample, sampler)
        walker = kind(
            Exact(problem), order=order, steps=calls, silent=True, dtype=torch.float64
        )
        return walker(noise * LARGEST)

    return measured(walk, LARGEST, calls, end, small)


def k_diffusion(
    sampler: str, grid: str, calls: Sequence[int] = (), small: bool = False
) -> Once:
    """A sampler of k-diffusion with one of its own grids, to 0."""
    from subjects.others import k_diffusion_sampling

    sampling = k_diffusion_sampling()

    def walk(problem: Mixture, noise: Tensor, calls: int) -> Tensor:
        sigmas = getattr(sampling, f"get_sigmas_{grid}")(calls, SMALLEST, LARGEST)

        def denoise(x: Tensor, sigma: Tensor, **more: Any) -> Tensor:
            return problem.mean(x, sigma[0])

        start = noise * LARGEST
        return getattr(sampling, sampler)(denoise, start, sigmas.double(), disable=True)

    return measured(walk, LARGEST, calls, END, small)
