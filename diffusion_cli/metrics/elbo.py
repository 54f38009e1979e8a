"""The variational bound on the likelihood of a Gaussian diffusion."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor

from diffusion_cli.denoiser import Denoiser
from diffusion_cli.metrics import Batch, Metric, Result, Subject, metrics
from diffusion_cli.metrics.dequantising import decoded, start
from diffusion_cli.metrics.summaries import (
    continuous,
    given,
    meant,
    spacing,
    summary,
    surprise,
)
from diffusion_cli.processes.affine import Diffusion
from diffusion_cli.rng import Rng
from diffusion_cli.settings import require


@metrics("elbo")
class Elbo(Metric):
    """A bound on -log p(x_0) from the loss, in continuous time.

    -log p(x_0) <= KL(q(x_1 | x_0) | p_1) + E[-log p(x_0 | x_floor)]
                   + 1/2 int E|x_0 - E[x_0 | x_t]|^2 dSNR,   SNR = alpha^2 / sigma^2

    The integral from t = 1 to the floor is the loss with the weight `likelihood`. Its
    times are even in log(1 + SNR), where the integrand is half the squared error of v;
    every sample has one in each of `times` strata. The decoder is a softmax over the
    levels, or N(x / alpha, (sigma / alpha)^2) for continuous data. Conditional on the
    labels of the data; without guidance.

    Reference: Kingma et al. 2021, section 3 and eq. 17, arXiv:2107.00630.

    Args:
        n: Number of data.
        times: Times per sample, one network call each.
        floor: Time at which the bound starts; null is the smallest trained one, or
            where sigma / alpha is a third of the spacing of the levels, if later.
    """

    needs = Diffusion

    def __init__(
        self, n: int = 1000, times: int = 16, floor: float | None = None
    ) -> None:
        require(n >= 1, "n", n, ">= 1")
        require(times >= 1, "times", times, ">= 1")
        require(floor is None or 0 < floor < 1, "floor", floor, "in (0, 1) or null")
        self.n, self.times, self.floor = n, times, floor

    @torch.no_grad()
    def __call__(self, subject: Subject) -> Result:
        model, spec = subject.model, subject.model.spec
        continuous(spec, "elbo")
        process, width = cast(Diffusion, model.process), spacing(spec)
        t = start(process, width, self.floor)
        levels = int(spec.codec.get("levels", 0))

        def work(batch: Batch, first: int) -> Tensor:
            x0, cond, rng = batch.x0.double(), batch.cond, batch.rng
            nats = (
                self.prior(process, x0),
                self.diffusion(model.given(**cond), x0, t, rng),
                self.reconstruction(process, x0, t, rng, width, levels),
            )
            return torch.stack(nats, 1)

        found = subject.each(self.n, work)  # (N, 3)
        values = surprise(found.sum(1), spec)
        for i, name in enumerate(("prior", "diffusion", "reconstruction")):
            values |= summary(f"{name}_nats", found[:, i])
        notes = (
            meant(spec),
            "an upper bound on the negative log-likelihood, from the loss",
            f"floor t = {float(t):g}, sigma / alpha = {_noise(process, t):g}; "
            f"{self.times} times per sample, even in log(1 + SNR)",
        )
        return Result(values, notes=notes, protocol=given(spec))

    def prior(self, process: Diffusion, x0: Tensor) -> Tensor:
        """KL(q(x_1 | x_0) | p_1) in nats, (B,)."""
        end = process.end
        return ((end.alpha / end.sigma) * x0).square().flatten(1).sum(1) / 2

    def diffusion(
        self, denoiser: Denoiser, x0: Tensor, floor: Tensor, rng: Rng
    ) -> Tensor:
        """The integral of the loss in nats, (B,)."""
        process = cast(Diffusion, denoiser.process)
        ends = (process.end.sigma / process.end.alpha, _noise(process, floor))
        low, high = (math.log1p(float(noise) ** -2) for noise in ends)
        total = x0.new_zeros(len(x0))
        for k in range(self.times):
            own = rng.child("elbo").at(k)
            u = (k + own.child("time").uniform((len(x0),))) / self.times
            level = low + u * (high - low)  # log(1 + SNR)
            t = process.schedule.time(torch.expm1(level).rsqrt())
            x = process.corrupt(x0, t, process.noise(x0, own))
            error = (x0 - denoiser(x, t).mean).square().flatten(1).sum(1)
            total += level.exp() * error
        return total * (high - low) / (2 * self.times)

    def reconstruction(
        self,
        process: Diffusion,
        x0: Tensor,
        floor: Tensor,
        rng: Rng,
        width: float | None,
        levels: int,
    ) -> Tensor:
        """-log p(x_0 | x_floor) in nats, (B,); its mean if the data are continuous."""
        noise = _noise(process, floor)
        if width is None:
            volume = math.log(2 * math.pi * noise**2) + 1
            return x0.new_full((len(x0),), x0[0].numel() * volume / 2)
        x = x0 + noise * process.noise(x0, rng.child("reconstruction"))
        return decoded(x0, x, width, levels, noise)


def _noise(process: Diffusion, t: Tensor) -> float:
    """sigma / alpha."""
    k = process.schedule(t)
    return float(k.sigma / k.alpha)
