"""One-step methods for the probability-flow ODE, in the coordinates of its chart."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor

from diffusion_cli.denoiser import Denoiser
from diffusion_cli.processes import Flow, Process
from diffusion_cli.processes.affine import Diffusion
from diffusion_cli.rng import Rng
from diffusion_cli.samplers import Grid, Sampler, samplers
from diffusion_cli.settings import require


def move(process: Flow, x: Tensor, slope: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """x_s on the straight line of direction `slope` through x_t, in the chart."""
    (scale, clock), (after, later) = process.place(t), process.place(s)
    return after * (x / scale + (later - clock) * slope)


@samplers("euler")
class Euler(Sampler):
    """Euler's method on the probability-flow ODE.

    y_s = y_t + (c_s - c_t) dy/dc,   y = x / scale, c = clock of the process's chart

    On a path with bounded noise level, y = x / alpha over sigma / alpha, this is DDIM
    with eta = 0; on a straight path it is the Euler method of flow matching. The last
    step returns the belief.

    Reference: Karras et al. 2022, section 3, arXiv:2206.00364.

    Args:
        steps: Number of steps; one evaluation each.
        grid: Where the steps fall.
    """

    order = 1

    def __init__(self, grid: Grid, steps: int = 50) -> None:
        require(steps >= 1, "steps", steps, ">= 1")
        self.grid, self.steps = grid, steps

    @property
    def needs(self) -> type[Process]:
        return Flow

    @torch.no_grad()
    def trajectory(self, denoiser: Denoiser, x: Tensor, rng: Rng) -> Iterator[Tensor]:
        process = cast(Flow, denoiser.process)
        for t, s in pairwise(self.grid(process, self.steps)):
            q = denoiser(x, t)
            x = (
                move(process, x, process.slope(q, x, t), t, s)
                if s.item() > 0
                else q.mean
            )
            yield x


@samplers("heun")
class Heun(Sampler):
    """Heun's second-order method on the probability-flow ODE, with EDM's churn.

    y' = y_t + h f(y_t),   y_s = y_t + h (f(y_t) + f(y')) / 2,   h = c_s - c_t

    y and c are the coordinates of the process's chart. The last step returns the
    belief, so 18 steps are 35 evaluations. Churn first raises the noise from sigma to
    sigma (1 + min(churn / steps, sqrt(2) - 1)) and adds what is missing.

    Reference: Karras et al. 2022, algorithms 1 and 2, arXiv:2206.00364.

    Args:
        steps: Number of steps; evaluations are 2 steps - 1.
        grid: Where the steps fall.
        churn: S_churn; 0 is deterministic, 40 is the paper's for ImageNet-64.
        churn_min: S_min, the smallest sigma / alpha with churn.
        churn_max: S_max, the largest sigma / alpha with churn; null is no limit.
        churn_noise: S_noise, the standard deviation of the added noise.
    """

    order = 2

    def __init__(
        self,
        grid: Grid,
        steps: int = 18,
        churn: float = 0.0,
        churn_min: float = 0.0,
        churn_max: float | None = None,
        churn_noise: float = 1.0,
    ) -> None:
        require(steps >= 1, "steps", steps, ">= 1")
        require(churn >= 0, "churn", churn, ">= 0")
        require(churn_noise > 0, "churn_noise", churn_noise, "> 0")
        self.grid, self.steps, self.churn = grid, steps, churn
        self.window = (churn_min, math.inf if churn_max is None else churn_max)
        self.churn_noise = churn_noise

    @property
    def needs(self) -> type[Process]:
        return Diffusion if self.churn else Flow

    @property
    def noisy(self) -> bool:
        return self.churn > 0

    def calls(self, steps: int) -> int:
        return 2 * steps - 1

    @torch.no_grad()
    def trajectory(self, denoiser: Denoiser, x: Tensor, rng: Rng) -> Iterator[Tensor]:
        process = cast(Flow, denoiser.process)
        for i, (t, s) in enumerate(pairwise(self.grid(process, self.steps))):
            if self.churn:
                x, t = self.raised(cast(Diffusion, process), x, t, rng.at(i))
            q = denoiser(x, t)
            if s.item() == 0:
                x = q.mean
            else:
                slope = process.slope(q, x, t)
                ahead = move(process, x, slope, t, s)
                slope = (slope + process.slope(denoiser(ahead, s), ahead, s)) / 2
                x = move(process, x, slope, t, s)
            yield x

    def raised(
        self, process: Diffusion, x: Tensor, t: Tensor, rng: Rng
    ) -> tuple[Tensor, Tensor]:
        """The state with more noise, and the time that belongs to it."""
        k = process.schedule(t)
        ratio = k.sigma / k.alpha
        if ratio.isinf() or not self.window[0] <= ratio <= self.window[1]:
            return x, t  # infinite noise cannot be raised
        more = ratio * (1 + min(self.churn / self.steps, math.sqrt(2) - 1))
        later = process.schedule.time(more)  # a table ends at t = 1
        b = process.schedule(later)
        added = ((b.sigma / b.alpha) ** 2 - ratio**2).clamp(min=0)
        spread = self.churn_noise * added.sqrt()
        normal = rng.child("churn").normal(x.shape, x.dtype)
        return b.alpha * (x / k.alpha + spread * normal), later


@samplers("rk4")
class RK4(Sampler):
    """The classical Runge-Kutta method of fourth order on the probability-flow ODE.

    y_s = y_t + h (k1 + 2 k2 + 2 k3 + k4) / 6,   h = c_s - c_t
    k1 = f(y_t), k2 = f(y_t + h k1 / 2), k3 = f(y_t + h k2 / 2), k4 = f(y_t + h k3)

    y and c are the coordinates of the process's chart, and k2 and k3 lie halfway in c:
    a process of discrete times is asked between them. The last step returns the belief.

    Reference: Kutta 1901, "Beitrag zur naeherungsweisen Integration totaler
        Differentialgleichungen".

    Args:
        steps: Number of steps; evaluations are 4 (steps - 1) + 1.
        grid: Where the steps fall.
    """

    order = 4

    def __init__(self, grid: Grid, steps: int = 10) -> None:
        require(steps >= 1, "steps", steps, ">= 1")
        self.grid, self.steps = grid, steps

    @property
    def needs(self) -> type[Process]:
        return Flow

    def calls(self, steps: int) -> int:
        return 4 * (steps - 1) + 1

    @torch.no_grad()
    def trajectory(self, denoiser: Denoiser, x: Tensor, rng: Rng) -> Iterator[Tensor]:
        process = cast(Flow, denoiser.process)
        for t, s in pairwise(self.grid(process, self.steps)):
            q = denoiser(x, t)
            if s.item() == 0:
                x = q.mean
            else:
                clock = (process.place(t)[1] + process.place(s)[1]) / 2
                half = process.instant(torch.tensor(clock, dtype=torch.float64))
                total = slope = process.slope(q, x, t)
                for end, weight in ((half, 2), (half, 2), (s, 1)):
                    ahead = move(process, x, slope, t, end)
                    slope = process.slope(denoiser(ahead, end), ahead, end)
                    total = total + weight * slope
                x = move(process, x, total / 6, t, s)
            yield x
