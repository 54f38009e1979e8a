"""Predictors with Langevin correctors, and Langevin dynamics alone."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Literal, cast

import torch
from torch import Tensor

from diffusion_cli.core import Posterior
from diffusion_cli.denoiser import Denoiser
from diffusion_cli.processes import Process
from diffusion_cli.processes.affine import Diffusion
from diffusion_cli.rng import Rng
from diffusion_cli.samplers import Grid, Sampler, samplers
from diffusion_cli.samplers.langevin import (
    SIGMA_MAX,
    corrector_step,
    demand_signal,
    euler_maruyama,
    gradient,
    langevin,
)
from diffusion_cli.settings import require


@samplers("pc")
class PredictorCorrector(Sampler):
    """Predictor-corrector: Langevin moves at a level, then a step to the next.

    corrector: x <- x + e score + sqrt(2 e) z
    e = 2 (r snr)^2 min((d + k) / (|score|^2 + k / sigma_t^2), sigma_t^2),   k = 64
    reverse_diffusion: x_s = (2 - r) x_t + G^2 score + G z
    r = alpha_t / alpha_s,   G^2 = sigma_t^2 - r^2 sigma_s^2

    r and G are the exact forward step from s to t, read backwards. The norm is that of
    every sample by itself, not of the batch, so that a sample does not depend on the
    others, and d stands for |z|^2. A step that follows x samples another law, the more
    so in few dimensions, so the norm is shrunk to that of noise alone by k coordinates,
    and the step is bounded by it. The last step returns the belief.

    Other predictors: `euler_maruyama`; `ancestral`, the process's own step; and `none`,
    which rescales.

    Reference: Song et al. 2021, algorithms 2 to 5 and eq. 46, arXiv:2011.13456.

    Args:
        steps: Number of steps; 1 + corrections evaluations each.
        grid: Where the steps fall.
        predictor: How a level is left.
        corrections: Langevin moves before each step; 0 is the predictor alone.
        snr: Signal-to-noise ratio of a move; the paper's is 0.16.
    """

    def __init__(
        self,
        grid: Grid,
        steps: int = 1000,
        predictor: Literal[
            "reverse_diffusion", "euler_maruyama", "ancestral", "none"
        ] = "reverse_diffusion",
        corrections: int = 1,
        snr: float = 0.16,
    ) -> None:
        require(steps >= 1, "steps", steps, ">= 1")
        require(corrections >= 0, "corrections", corrections, ">= 0")
        require(0 < snr <= 100, "snr", snr, "in (0, 100]")
        self.grid, self.steps, self.predictor = grid, steps, predictor
        self.corrections, self.snr = corrections, snr
        self.own = self.draws = predictor == "ancestral"

    @property
    def needs(self) -> type[Process]:
        return Diffusion

    def check(self, process: Process) -> None:
        if self.predictor != "ancestral":
            what = f"the step of predictor `{self.predictor}` is undefined"
            hint = f"sampler.predictor=ancestral, or {SIGMA_MAX}"
            demand_signal(self.grid, cast(Diffusion, process), self.steps, what, hint)

    @property
    def noisy(self) -> bool:
        return True

    def calls(self, steps: int) -> int:
        if self.predictor == "none":
            return steps * self.corrections + 1
        return steps * (self.corrections + 1)

    @torch.no_grad()
    def trajectory(self, denoiser: Denoiser, x: Tensor, rng: Rng) -> Iterator[Tensor]:
        process = cast(Diffusion, denoiser.process)
        for i, (t, s) in enumerate(pairwise(self.grid(process, self.steps))):
            here = rng.at(i)
            k = process.schedule(t)
            ratio, sigma = k.alpha / process.schedule(s).alpha, float(k.sigma)
            for j in range(self.corrections):
                score = gradient(process, denoiser(x, t), x, t)
                normal = here.child(f"correction-{j}").normal(x.shape, x.dtype)
                step = ratio**2 * corrector_step(score, self.snr, sigma)
                x = langevin(x, score, step, normal)
            if s > 0 and self.predictor == "none":
                x = x / ratio
            else:
                q = denoiser(x, t)
                x = self.predicted(process, q, x, t, s, here) if s > 0 else q.mean
            yield x

    def predicted(
        self,
        process: Diffusion,
        q: Posterior,
        x: Tensor,
        t: Tensor,
        s: Tensor,
        rng: Rng,
    ) -> Tensor:
        """x_s from x_t and a belief."""
        if self.predictor == "ancestral":
            return process.reverse(q, x, t, s, rng)
        normal = rng.child("step").normal(x.shape, x.dtype)
        if self.predictor == "euler_maruyama":
            return euler_maruyama(process, q, x, t, s, process.diffusion(t), normal)
        a, b = process.schedule(t), process.schedule(s)
        ratio = a.alpha / b.alpha
        square = (a.sigma**2 - (ratio * b.sigma) ** 2).clamp(min=0)
        return (
            (2 - ratio) * x + square * process.score(q, x, t) + square.sqrt() * normal
        )


@samplers("annealed_langevin")
class AnnealedLangevin(Sampler):
    """Annealed Langevin dynamics: moves at one noise level after the other.

    u <- u + e_i grad log p(u) + sqrt(2 e_i) z,   e_i = step (c_i / c_last)^2

    u = x / alpha and c = sigma / alpha, in which every path adds noise c to data as
    NCSN does. `step` multiplies the score, as in the published code; the paper's text
    writes half of it. After the last level the belief is returned.

    Reference: Song and Ermon 2019, algorithm 1, arXiv:1907.05600; Song and Ermon 2020,
        arXiv:2006.09011 (the defaults and the final denoising step).

    Args:
        steps: Number of noise levels.
        grid: Where the levels fall.
        repeats: Moves at each level; evaluations are steps * repeats + 1.
        step: e at the last level; at or above 2 c_last^2 a point mass is unstable.
    """

    def __init__(
        self, grid: Grid, steps: int = 232, repeats: int = 5, step: float = 6.2e-6
    ) -> None:
        require(steps >= 1, "steps", steps, ">= 1")
        require(repeats >= 1, "repeats", repeats, ">= 1")
        require(step > 0, "step", step, "> 0")
        self.grid, self.steps, self.repeats, self.step = grid, steps, repeats, step

    @property
    def needs(self) -> type[Process]:
        return Diffusion

    def check(self, process: Process) -> None:
        what = "the noise sigma / alpha is infinite"
        demand_signal(self.grid, cast(Diffusion, process), self.steps, what, SIGMA_MAX)

    def calls(self, steps: int) -> int:
        return steps * self.repeats + 1

    @property
    def noisy(self) -> bool:
        return True

    @torch.no_grad()
    def trajectory(self, denoiser: Denoiser, x: Tensor, rng: Rng) -> Iterator[Tensor]:
        process = cast(Diffusion, denoiser.process)
        times = self.grid(process, self.steps)
        levels = process.schedule(times[:-1])
        noise = levels.sigma / levels.alpha
        for i, (t, s) in enumerate(pairwise(times)):
            # in x the step has the factor alpha^2
            step = self.step * (levels.alpha[i] * noise[i] / noise[-1]) ** 2
            for j in range(self.repeats):
                score = gradient(process, denoiser(x, t), x, t)
                stream = rng.at(i * self.repeats + j).child("move")
                x = langevin(x, score, step, stream.normal(x.shape, x.dtype))
            if s == 0:
                x = denoiser(x, t).mean
            else:
                x = x * (levels.alpha[i + 1] / levels.alpha[i])
            yield x
