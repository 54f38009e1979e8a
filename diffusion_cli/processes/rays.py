"""Affine paths whose noise need not be normal: every datum sends out straight rays.

`Rays` asks for a law of the noise and its density. The ODE follows from the belief
alone; a score, an SDE and a step that draws do not exist. Registers no process.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from diffusion_cli.core import Posterior, Spec
from diffusion_cli.processes.affine import Affine
from diffusion_cli.processes.arcs import slerp
from diffusion_cli.registry import Registry
from diffusion_cli.rng import Rng
from diffusion_cli.settings import require


class Law(ABC):
    """A law of the noise n of one sample; of unit variance, where it has a variance.

    A law may change with the level w = sigma / (alpha + sigma), between 0 at data and
    1 without signal: `at` and `bend` say how. One that keeps its shape leaves them.
    """

    isotropic: bool = False  # every direction is as likely as any other

    @abstractmethod
    def noise(self, shape: Sequence[int], rng: Rng, dtype: torch.dtype) -> Tensor:
        """Noise, a row per sample; (B, ...)."""

    @abstractmethod
    def log_density(self, n: Tensor, w: Tensor) -> Tensor:
        """log p(n) in nats, (B,) float64, of the law as it is at the level `w`, ()."""

    def at(self, n: Tensor, w: Tensor) -> Tensor:
        """What a draw has become at the level `w`: of the same radial quantile."""
        return n

    def bend(self, n: Tensor, w: Tensor) -> Tensor | float:
        """(1 - k) c n, where |x / alpha - x_0| grows like c^k with c = sigma / alpha.

        `n` is the draw as `at` made it.
        """
        return 0.0

    def fits(self, data: Spec) -> str | None:
        """Why this is no law for such data, or None."""
        return None


laws: Registry[Law] = Registry("law", Law, "diffusion_cli.processes")


class Rays(Affine):
    """An affine path with any law of the noise; its steps are those of the ODE.

    x_s = alpha_s E[x_0] + sigma_s / sigma_t (x_t - alpha_t E[x_0])

    Euler's step for x / alpha over sigma / alpha, exact along the rays of one datum.
    """

    @abstractmethod
    def log_noise(self, n: Tensor) -> Tensor:
        """log p(n) of the noise at the end, in nats, (B,) float64."""

    def log_prior(self, x: Tensor) -> Tensor:
        volume = x[0].numel() * self.end.sigma.log()
        return self.log_noise(x.double() / self.end.sigma) - volume

    def check(self, eta: float = 0.0, final: str = "mean", **how: Any) -> None:
        allowed = "0: only Gaussian noise has reverse steps that draw"
        require(eta == 0, "eta", eta, allowed)
        require(final == "mean", "final", final, "mean: these steps do not draw")

    def reverse(  # type: ignore[override]  # keywords are checked by `assemble`
        self,
        q: Posterior,
        x: Tensor,
        t: Tensor,
        s: Tensor,
        rng: Rng,
        eta: float = 0.0,
        final: Literal["mean", "draw"] = "mean",
    ) -> Tensor:
        a, b = self.at(t, x), self.at(s, x)
        return b.alpha * q.mean + b.sigma / a.sigma * (x - a.alpha * q.mean)


class Charged(Rays):
    """Rays whose noise is isotropic: a datum acts on a state by distance alone."""

    @abstractmethod
    def log_kernel(self, square: Tensor, d: int) -> Tensor:
        """log p(n) in nats from |n|^2, any shape, of noise in `d` dimensions."""

    def between(self, a: Tensor, b: Tensor, share: Tensor) -> Tensor:
        return slerp(a, b, share)

    def log_noise(self, n: Tensor) -> Tensor:
        n = n.double().flatten(1)
        return self.log_kernel(n.square().sum(1), n.shape[1])
