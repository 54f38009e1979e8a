"""Moves under a score: Langevin dynamics and Euler-Maruyama, and where they end."""

from __future__ import annotations

from torch import Tensor

from diffusion_cli.core import Posterior
from diffusion_cli.errors import ConfigError
from diffusion_cli.processes.affine import Diffusion, like
from diffusion_cli.samplers import Grid

SIGMA_MAX = "sampler.grid.name=log_sigma sampler.grid.sigma_max=80"  # to type


def gradient(process: Diffusion, q: Posterior, x: Tensor, t: Tensor) -> Tensor:
    """The score with what guidance adds to it, the shape of `x`."""
    score: Tensor = process.score(q, x, t) + q.tilt
    return score


def langevin(x: Tensor, score: Tensor, step: Tensor, normal: Tensor) -> Tensor:
    """x + step score + sqrt(2 step) z; `step` is () or (B,)."""
    return x + like(step, x) * score + like((2 * step).sqrt(), x) * normal


def corrector_step(score: Tensor, normal: Tensor, snr: float, most: float) -> Tensor:
    """2 (snr |z| / |score|)^2 of every sample by itself, at most `most`: (B,)."""
    sizes = [part.double().flatten(1).norm(dim=1) for part in (normal, score)]
    ratio: Tensor = sizes[0] / sizes[1].clamp(min=1e-30)
    return (2 * (snr * ratio).square()).clamp(max=most)


def euler_maruyama(
    process: Diffusion,
    q: Posterior,
    x: Tensor,
    t: Tensor,
    s: Tensor,
    square: Tensor,
    normal: Tensor,
) -> Tensor:
    """x_s by one step of the reverse-time SDE of noise kappa(t)^2 = square."""
    h = t - s
    drift = process.velocity(q, x, t) - square / 2 * process.score(q, x, t)
    return x - h * drift + (h * square).sqrt() * normal


def demand_signal(
    grid: Grid, process: Diffusion, steps: int, what: str, hint: str
) -> None:
    """Refuse a grid that starts at alpha = 0, where `what` is infinite."""
    if process.schedule(grid(process, steps)[0]).alpha == 0:
        message = f"sampler: {what} at the first time, where alpha = 0"
        raise ConfigError(message, hint)
