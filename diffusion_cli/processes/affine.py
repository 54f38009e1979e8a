"""Affine paths x_t = alpha x_0 + sigma n: all that follows from a schedule alone.

`Affine` asks for a noise law; `Diffusion` is the case of Gaussian noise, which adds a
score and therefore an SDE. Both stay abstract; a schedule is data for either.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from diffusion_cli.core import Posterior
from diffusion_cli.processes import Chart, Flow
from diffusion_cli.processes.arcs import slerp
from diffusion_cli.registry import Registry
from diffusion_cli.rng import Rng

LEAST = 1e-4  # of alpha, where its logarithm is asked for
KEPT = 4096  # times whose scales a process remembers
Factor = float | Tensor  # one number for the whole batch, or one per sample


class Scales(NamedTuple):
    """alpha(t), sigma(t) and their time derivatives."""

    alpha: Tensor
    sigma: Tensor
    dalpha: Tensor
    dsigma: Tensor


class Numbers(NamedTuple):
    """The scales at one time."""

    alpha: float
    sigma: float
    dalpha: float
    dsigma: float


Factors = Scales | Numbers  # what multiplies states: one for each, or one for all


class Schedule(ABC):
    """alpha(t) and sigma(t) of an affine path, with alpha(0) = 1 and sigma(0) = 0.

    A schedule may keep noise sigma(0) > 0 in what it calls data. Everything is float64
    in the shape and on the device of `t`.
    """

    span: tuple[float, float] = (1e-3, 1.0)
    levels: int | None = None

    @abstractmethod
    def __call__(self, t: Tensor) -> Scales:
        """The scales at the times `t`."""

    def time(self, ratio: Tensor) -> Tensor:
        """The time at which sigma / alpha = ratio: bisection, to the last bit."""
        low, high = torch.zeros_like(ratio), torch.ones_like(ratio)
        for _ in range(60):
            middle = (low + high) / 2
            scales = self(middle)
            below = scales.sigma < ratio * scales.alpha
            low, high = (
                torch.where(below, middle, low),
                torch.where(below, high, middle),
            )
        return (low + high) / 2


schedules: Registry[Schedule] = Registry(
    "schedule", Schedule, "diffusion_cli.processes"
)


def preserving(log_alpha: Tensor, dlog_alpha: Tensor) -> Scales:
    """The variance-preserving scales, alpha^2 + sigma^2 = 1, from log alpha."""
    alpha = log_alpha.exp()
    sigma = (-torch.expm1(2 * log_alpha)).sqrt()
    return Scales(alpha, sigma, alpha * dlog_alpha, -(alpha**2) * dlog_alpha / sigma)


def like(value: Tensor, x: Tensor) -> Tensor:
    """A value per sample, (B,), shaped to multiply x; () multiplies as it is."""
    if value.ndim == 0:
        return value
    return value.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))


def beside(value: Factor, x: Tensor) -> Tensor:
    """A factor as a tensor like `x`; a number is a fill there, not a copy to there."""
    return x.new_full((), value) if isinstance(value, float) else value.to(x)


def root(square: Factor) -> Factor:
    """The square root of what is below 0 by rounding alone."""
    if isinstance(square, float):
        return math.sqrt(max(square, 0.0))
    return square.clamp(min=0).sqrt()


def blend(a: Factor, x: Tensor, b: Factor, y: Tensor) -> Tensor:
    """a x + b y, the shape of `x`; numbers take two passes over memory, not three."""
    if isinstance(b, float):
        return torch.add(a * x, y, alpha=b)
    return a * x + b * y


class Affine(Flow):
    """x_t = alpha x_0 + sigma n, for any noise law; the ODE needs E[x_0 | x_t] alone.

    dx/dt = alpha' E[x_0 | x] + sigma' (x - alpha E[x_0 | x]) / sigma

    It is integrated as x / alpha over sigma / alpha, where every affine path is the
    same ODE, or as x over t if alpha vanishes at the end (flow matching).

    Reference: Karras et al. 2022, section 2, arXiv:2206.00364.
    """

    def __init__(self, schedule: Schedule) -> None:
        super().__init__()
        self.schedule = schedule
        self.span, self.levels = schedule.span, schedule.levels
        end = torch.tensor(self.span[1], dtype=torch.float64)
        self.end = schedule(end)
        self.bounded = bool(self.end.alpha > 0)  # sigma / alpha is finite at the end
        self._known: dict[float, Numbers] = {}
        self._last: tuple[Tensor, int, Scales] | None = None

    def scales(self, t: Tensor) -> Scales:
        """The scales at the times `t`; those of the last `t` are kept.

        A training step asks for them half a dozen times.
        """
        if t.requires_grad:  # each use has a graph of its own
            return self.schedule(t)
        last = self._last
        if last is None or last[0] is not t or last[1] != t._version:
            last = self._last = t, t._version, self.schedule(t)
        return last[2]

    def numbers(self, t: Tensor) -> Numbers:
        """The scales at one time, (), on the CPU; computed once and kept."""
        time = t.item()
        if time not in self._known:
            if len(self._known) >= KEPT:
                self._known.clear()
            self._known[time] = Numbers(*(k.item() for k in self.schedule(t)))
        return self._known[time]

    def at(self, t: Tensor, x: Tensor) -> Factors:
        """The scales to multiply `x`: numbers, or tensors if every sample has a time.

        A sampler asks for each time of its grid more than once, and in every chunk.
        """
        if t.ndim == 0 and t.is_cpu:
            return self.numbers(t)
        return Scales(*(like(scale, x) for scale in self.scales(t)))

    def noise_to_signal(self, t: Tensor) -> Tensor:
        k = self.scales(t)
        return k.sigma / k.alpha

    def log_ratio(self, t: Tensor) -> Tensor:
        """log(sigma / alpha), float64 in the shape of `t`; as if alpha >= `LEAST`.

        Where no signal is left (alpha = 0) it saturates instead of diverging.
        """
        if t.ndim == 0 and t.is_cpu:
            one = self.numbers(t)
            log = math.log(one.sigma / max(one.alpha, LEAST))
            return torch.tensor(log, dtype=torch.float64)
        k = self.scales(t)
        return (k.sigma / k.alpha.clamp(min=LEAST)).log()

    def corrupt(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        k = self.at(t, x0)
        return k.alpha * x0 + k.sigma * noise

    def prior(self, shape: Sequence[int], rng: Rng) -> Tensor:
        empty = torch.empty(tuple(shape), device=rng.device)
        return self.end.sigma * self.noise(empty, rng.child("prior"))

    def velocity(self, q: Posterior, x: Tensor, t: Tensor) -> Tensor:
        k = self.at(t, x)
        return k.dalpha * q.mean + k.dsigma * (x - k.alpha * q.mean) / k.sigma

    def chart(self, t: Tensor) -> Chart:
        if not self.bounded:
            return Chart(torch.ones_like(t), t)
        k = self.scales(t)
        return Chart(k.alpha, k.sigma / k.alpha)

    def place(self, t: Tensor) -> tuple[float, float]:
        if not self.bounded:
            return 1.0, t.item()
        k = self.numbers(t)
        return k.alpha, k.sigma / k.alpha

    def instant(self, clock: Tensor) -> Tensor:
        t = self.schedule.time(clock) if self.bounded else clock
        return t.clamp(max=self.span[1])

    def slope(self, q: Posterior, x: Tensor, t: Tensor) -> Tensor:
        if not self.bounded:
            return self.velocity(q, x, t)
        k = self.at(t, x)
        return (x - k.alpha * q.mean) / k.sigma


class Diffusion(Affine):
    """An affine path with Gaussian noise: it has a score, and SDEs that share its path.

    dx = f x dt + g dw,   f = alpha' / alpha,   g^2 = 2 sigma sigma' - 2 f sigma^2

    Reference: Song et al. 2021, section 3, arXiv:2011.13456.
    """

    def noise(self, x0: Tensor, rng: Rng) -> Tensor:
        return rng.child("noise").normal(x0.shape, x0.dtype)

    def between(self, a: Tensor, b: Tensor, share: Tensor) -> Tensor:
        return slerp(a, b, share)

    def log_prior(self, x: Tensor) -> Tensor:
        z = x.double().flatten(1) / self.end.sigma
        volume = (2 * math.pi * self.end.sigma**2).log()
        return -(z.square() + volume).sum(1) / 2

    def score(self, q: Posterior, x: Tensor, t: Tensor) -> Tensor:
        """grad log p_t(x) = (alpha E[x_0 | x] - x) / sigma^2, the shape of `x`."""
        k = self.at(t, x)
        return (k.alpha * q.mean - x) / k.sigma**2

    def drift(self, t: Tensor) -> Tensor:
        """f(t) of the forward SDE, the shape of `t`."""
        k = self.scales(t)
        return k.dalpha / k.alpha

    def diffusion(self, t: Tensor) -> Tensor:
        """g(t)^2 of the forward SDE, the shape of `t`."""
        k = self.scales(t)
        return 2 * k.sigma * (k.dsigma - k.sigma * k.dalpha / k.alpha)

    def diffuse(self, x: Tensor, t: Tensor, s: Tensor, rng: Rng) -> Tensor:
        """Draw x_s given x_t for s > t: one exact step of the forward SDE."""
        a, b = self.at(t, x), self.at(s, x)
        ratio = b.alpha / a.alpha
        spread = root(b.sigma**2 - (ratio * a.sigma) ** 2)
        return ratio * x + spread * rng.child("diffuse").normal(x.shape, x.dtype)
