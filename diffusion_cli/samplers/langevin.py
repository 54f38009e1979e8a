"""Moves under a score: Langevin dynamics and Euler-Maruyama, and where they end."""

from __future__ import annotations

from torch import Tensor

from diffusion_cli.core import Posterior
from diffusion_cli.errors import ConfigError
from diffusion_cli.processes.affine import Diffusion, like
from diffusion_cli.samplers import Grid

PRIOR = 64  # coordinates for which a score is taken to be as large as noise's
SIGMA_MAX = "sampler.grid.name=log_sigma sampler.grid.sigma_max=80"  # to type


def gradient(process: Diffusion, q: Posterior, x: Tensor, t: Tensor) -> Tensor:
    """The score with what guidance adds to it, the shape of `x`."""
    score: Tensor = process.score(q, x, t) + q.tilt
    return score


def langevin(x: Tensor, score: Tensor, step: Tensor, normal: Tensor) -> Tensor:
    """x + step score + sqrt(2 step) z; `step` is () or (B,)."""
    return x + like(step, x) * score + like((2 * step).sqrt(), x) * normal


def corrector_step(score: Tensor, snr: float, sigma: float) -> Tensor:
    """2 snr^2 min((d + k) / (|score|^2 + k / sigma^2), sigma^2), k = PRIOR: (B,)."""
    square = score.double().flatten(1).square()
    d, norm = square.shape[1], square.sum(1)
    longest: Tensor = (d + PRIOR) / (norm + PRIOR / sigma**2)
    return 2 * snr**2 * longest.clamp(max=sigma**2)


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
