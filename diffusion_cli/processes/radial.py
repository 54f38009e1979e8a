"""The general recipe for ODEs: any law of the noise, on rays straight or bent."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from diffusion_cli.core import Spec
from diffusion_cli.errors import ConfigError
from diffusion_cli.processes import processes
from diffusion_cli.processes.affine import Schedule, like
from diffusion_cli.processes.arcs import slerp
from diffusion_cli.processes.rays import Law, Rays
from diffusion_cli.rng import Rng


@processes("radial")
class Radial(Rays):
    """Any prior and any law of the noise; each radius keeps its quantile.

    x_t = alpha x_0 + sigma n_w,   w = sigma / (alpha + sigma)
    dx/dt = alpha' m + sigma' (x - alpha m) / sigma,   m = E[a | x_t]
    a = x_0 + (1 - k) (x_t / alpha - x_0),   |x_t / alpha - x_0| ~ (sigma / alpha)^k

    A law that keeps its shape has k = 1 and a = x_0: all of them share their velocity
    and differ in what n is drawn from, which may be another data set. One that changes
    its shape bends the rays; the belief is then about a, which is x_0 again at t = 0.

    Reference: Su 2022, "Talks on generative diffusion models" part 15,
        https://kexue.fm/archives/9379; Lipman et al. 2023, arXiv:2210.02747.

    Args:
        schedule: alpha(t) and sigma(t).
        law: The law of the noise.
    """

    def __init__(self, schedule: Schedule, law: Law) -> None:
        super().__init__(schedule)
        self.law = law

    def state(self, data: Spec) -> Spec:
        if reason := self.law.fits(data):
            hint = "process.law.dataset.name=<data of that shape>"
            raise ConfigError(f"process.law: {reason}", hint)
        return data

    def noise(self, x0: Tensor, rng: Rng) -> Tensor:
        return self.law.noise(x0.shape, rng, x0.dtype)

    def corrupt(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        return super().corrupt(x0, t, self.law.at(noise, self.level(t, x0)))

    def prior(self, shape: Sequence[int], rng: Rng) -> Tensor:
        empty = torch.empty(tuple(shape), device=rng.device)
        noise = self.noise(empty, rng.child("prior"))
        end = torch.tensor(self.span[1], dtype=torch.float64)
        return self.end.sigma * self.law.at(noise, self.level(end, noise))

    def between(self, a: Tensor, b: Tensor, share: Tensor) -> Tensor:
        if not self.law.isotropic:
            return super().between(a, b, share)
        return slerp(a, b, share)

    def aim(self, x0: Tensor, x: Tensor, t: Tensor) -> Tensor:
        k = self.at(t, x)
        noise = (x - k.alpha * x0) / k.sigma
        return x0 + self.law.bend(noise, self.level(t, x))

    def log_noise(self, n: Tensor) -> Tensor:
        end = torch.tensor(self.span[1], dtype=torch.float64)
        return self.law.log_density(n.double(), self.level(end, n))

    def log_density(self, n: Tensor, t: Tensor) -> Tensor:
        """log p(n) in nats of the noise (B, ...) as it is at one time, (B,) float64."""
        return self.law.log_density(n.double(), self.level(t, n))

    def level(self, t: Tensor, x: Tensor) -> Tensor:
        """w = sigma / (alpha + sigma), shaped to multiply `x`."""
        k = self.schedule(t)
        return like(k.sigma / (k.alpha + k.sigma), x)
