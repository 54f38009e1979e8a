"""Denoisers that are known exactly: the same call surface as a trained model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor

from diffusion_cli.core import Normal, Point, Posterior
from diffusion_cli.denoiser import Context, Denoiser, Model
from diffusion_cli.processes import processes
from diffusion_cli.processes.affine import Affine, Diffusion, Scales, like
from diffusion_cli.rng import Rng

SCHEDULES = {
    "linear": {"name": "linear"},
    "cosine": {"name": "cosine"},
    "exponential": {"name": "exponential"},
    "vp": {"name": "vp"},
    "subvp": {"name": "subvp"},
    "ve": {"name": "ve"},
    "karras": {"name": "karras"},
    "straight": {"name": "straight"},
    "trigonometric": {"name": "trigonometric"},
}
SMOOTH = [name for name in SCHEDULES if name not in ("linear", "cosine")]


def gaussian(name: str, **schedule: float) -> Diffusion:
    """The Gaussian process with a schedule, by name."""
    node = {"name": "gaussian", "schedule": {"name": name, **schedule}}
    return cast(Diffusion, processes.build(node))


def number(value: float) -> Tensor:
    """A float64 scalar."""
    return torch.tensor(value, dtype=torch.float64)


def rows(count: int, seed: int = 0) -> Rng:
    """The streams of samples 0 .. count - 1."""
    return Rng(seed, torch.arange(count))


def scales(process: Affine, t: Tensor, x: Tensor) -> Scales:
    """The scales at `t` as tensors that multiply `x`, straight from the schedule."""
    return Scales(*(like(k, x) for k in process.schedule(t)))


class Still(Rng):
    """A source whose every normal is the same number: isolates mean and spread."""

    def __init__(self, value: float) -> None:
        super().__init__(0, torch.arange(1))
        self.value = value

    def child(self, name: str) -> Rng:
        return self

    def at(self, step: int) -> Rng:
        return self

    def normal(
        self, shape: Sequence[int], dtype: torch.dtype = torch.float32
    ) -> Tensor:
        return torch.full(tuple(shape), self.value, dtype=dtype)


class NormalData(Denoiser):
    """Data N(m, s2) per coordinate: FIX-G, and FIX-A with a vector of variances."""

    def __init__(
        self,
        process: Affine,
        s2: float | Tensor = 0.25,
        m: float | Tensor = 0.0,
        spread: bool = False,
    ) -> None:
        super().__init__()
        self.process: Affine = process
        self.s2, self.m, self.spread = s2, m, spread

    def forward(self, x: Tensor, t: Tensor, **cond: Tensor) -> Posterior:
        k = scales(self.process, t, x)
        v = k.alpha**2 * self.s2 + k.sigma**2
        mean = self.m + k.alpha * self.s2 / v * (x - k.alpha * self.m)
        if self.spread:
            return Normal(mean, torch.as_tensor(self.s2 * k.sigma**2 / v))
        return Point(mean)

    def variance(self, t: Tensor) -> Tensor:
        """The variance of x_t."""
        k = self.process.schedule(t)
        return k.alpha**2 * self.s2 + k.sigma**2

    def exact(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """The probability-flow ODE from x_t to x_s, in closed form."""
        a, b = self.process.schedule(t).alpha, self.process.schedule(s).alpha
        ratio = (self.variance(s) / self.variance(t)).sqrt()
        return b * self.m + ratio * (x - a * self.m)


class Finite(Denoiser):
    """A finite data set (N, ...): FIX-E; the posterior is a softmax over its points."""

    def __init__(self, process: Affine, points: Tensor) -> None:
        super().__init__()
        self.process: Affine = process
        self.points = points

    def forward(self, x: Tensor, t: Tensor, **cond: Tensor) -> Posterior:
        k = scales(self.process, t, x)
        gaps = x.flatten(1)[:, None] - k.alpha * self.points.flatten(1)[None]
        spread = k.sigma if k.sigma.ndim == 0 else k.sigma.reshape(-1, 1)
        weights = (-gaps.square().sum(-1) / (2 * spread**2)).softmax(-1)
        return Point((weights @ self.points.flatten(1)).reshape(x.shape))


class Mixture(Denoiser):
    """A mixture of isotropic normals, FIX-M: sum_k w_k N(mu_k, s2_k I).

    weights (K,), means (K, D), variances (K,) or a number; states are (B, D). With
    `spread` the belief has the exact posterior variance of every coordinate.
    """

    def __init__(
        self,
        process: Affine,
        weights: Tensor,
        means: Tensor,
        variances: float | Tensor,
        spread: bool = False,
    ) -> None:
        super().__init__()
        self.process: Affine = process
        self.weights = weights.double() / weights.double().sum()
        self.means = means.double()
        self.variances = torch.as_tensor(variances).double().expand(len(means))
        self.spread = spread

    def _parts(self, x: Tensor, t: Tensor) -> tuple[Tensor, ...]:
        """alpha, sigma^2, x - alpha mu_k, variance, log of weight times density."""
        k = self.process.schedule(t)
        alpha, noise = (
            k.alpha.reshape(-1, 1),
            k.sigma.reshape(-1, 1) ** 2,
        )  # (B or 1, 1)
        v = alpha**2 * self.variances + noise  # (B or 1, K)
        gaps = x.double()[:, None] - alpha[..., None] * self.means  # (B, K, D)
        size = self.means.shape[1]
        logs = -gaps.square().sum(-1) / (2 * v) - size / 2 * (2 * math.pi * v).log()
        return alpha, noise, gaps, v, self.weights.log() + logs

    def forward(self, x: Tensor, t: Tensor, **cond: Tensor) -> Posterior:
        alpha, noise, gaps, v, logs = self._parts(x, t)
        share = logs.softmax(1)[..., None]  # (B, K, 1)
        means = self.means + (alpha * self.variances / v)[..., None] * gaps
        mean = (share * means).sum(1)
        if not self.spread:
            return Point(mean.to(x.dtype))
        within = (self.variances * noise / v)[..., None]
        var = (share * (within + (means - mean[:, None]).square())).sum(1)
        return Normal(mean.to(x.dtype), var.to(x.dtype))

    def logp(self, x: Tensor, t: Tensor) -> Tensor:
        """log p_t(x) in nats, (B,) float64."""
        return self._parts(x, t)[-1].logsumexp(1)

    def score(self, x: Tensor, t: Tensor) -> Tensor:
        """grad log p_t(x), (B, D) float64."""
        *_, gaps, v, logs = self._parts(x, t)
        return -(logs.softmax(1)[..., None] * gaps / v[..., None]).sum(1)

    def cdf(self, x: Tensor, t: Tensor) -> Tensor:
        """The distribution function of x_t in one dimension, (B,): FIX-Q."""
        *_, gaps, v, _ = self._parts(x, t)
        return torch.special.ndtr(gaps[..., 0] / v.sqrt()) @ self.weights

    def sample(self, n: int, rng: Rng) -> Tensor:
        """n clean samples, (n, D) float64; `rng` has a row each."""
        pick = rng.child("component").uniform((n, 1))
        which = (pick > self.weights.cumsum(0)).sum(1).clamp(max=len(self.means) - 1)
        normal = rng.child("within").normal((n, self.means.shape[1]), torch.float64)
        return self.means[which] + self.variances[which, None].sqrt() * normal


def eight(process: Affine, spread: bool = False) -> Mixture:
    """Eight normals on a circle, of standard deviation 0.1."""
    angle = torch.arange(8, dtype=torch.float64) * math.pi / 4
    means = torch.stack((angle.cos(), angle.sin()), 1)
    return Mixture(process, torch.ones(8), means, 0.01, spread)


class Known(Context):
    """A place where everything that a part may ask for is known."""

    def __init__(
        self,
        fits: Mapping[str, Mapping[str, Tensor]] | None = None,
        buffers: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.fits, self.buffers = fits or {}, buffers or {}

    def model(self, run: str) -> Model:
        raise NotImplementedError

    def samples(self, path: str) -> Tensor:
        raise NotImplementedError

    def fitted(self, name: str, by: str) -> Mapping[str, Tensor]:
        return self.fits[name]

    def tuned(self, steps: int) -> Mapping[str, Tensor]:
        return self.fits[f"grid-{steps}"]

    def recorded(self, name: str) -> Tensor:
        return self.buffers[name]


def exact_fit(process: Affine, s2: float | Tensor, times: Tensor) -> dict[str, Tensor]:
    """What `dcli fit` tends to for data N(0, s2), a number or one per coordinate."""
    k = process.schedule(times)
    a, b, s = k.alpha[:, None], k.sigma[:, None], torch.as_tensor(s2).double()
    v = a**2 * s + b**2
    return {
        "times": times,
        "noise": (b**2 / v).mean(1),
        "error": (a**2 * s / v).mean(1),
        "clean": (a**2 * s**2 / v).mean(1),
        "data": s.mean(),
        "low": number(-math.inf),
        "high": number(math.inf),
    }
