"""The exact likelihood of a continuous flow."""

from __future__ import annotations

import math
from collections import Counter
from typing import Literal, cast

import torch
from torch import Tensor

from diffusion_cli.core import Spec
from diffusion_cli.denoiser import Denoiser
from diffusion_cli.metrics import Batch, Metric, Result, Subject, metrics
from diffusion_cli.metrics.dequantising import Filling, filled, start
from diffusion_cli.metrics.divergences import Law, basis, divergences, draw
from diffusion_cli.metrics.summaries import (
    continuous,
    given,
    meant,
    spacing,
    surprise,
)
from diffusion_cli.odes import integrate
from diffusion_cli.processes.affine import Affine
from diffusion_cli.rng import Rng
from diffusion_cli.settings import require

COUNTED = ("calls", "accepted", "rejected")
EXACT = 16  # dimensions up to which `auto` takes the exact trace


@metrics("likelihood")
class Likelihood(Metric):
    """The exact log-likelihood of the probability-flow ODE, by dopri5.

    log p(x_0) = log p_1(x_1) + int div(dx/dt) dt + d log alpha(floor)

    from x = alpha x_0 at the floor to x_1; the last term makes p a density of x_0. The
    divergence is exact or w^T (df/dx) w, with w fixed over the whole solution. Levels
    are dequantised, P(x_0) = E_q[p(u) / q(u | x_0)]; several draws are averaged inside
    of the logarithm. Conditional on the labels of the data; without guidance.

    Reference: Song et al. 2021, eq. 39 and appendix D.2, arXiv:2011.13456.

    Args:
        n: Number of data.
        floor: Time at which the ODE starts; null is the smallest trained one, or where
            sigma / alpha is a third of the spacing of the levels, if later.
        trace: The exact divergence, or Hutchinson's; auto is exact for d <= 16.
        probes: Hutchinson's vectors per sample.
        law: Their law.
        dequantise: Draws per sample; data with levels only.
        filling: Their law; truncated_normal takes the model's noise at the floor.
        rtol: Relative tolerance.
        atol: Absolute tolerance.
    """

    needs = Affine

    def __init__(
        self,
        n: int = 1000,
        floor: float | None = None,
        trace: Literal["auto", "exact", "hutchinson"] = "auto",
        probes: int = 1,
        law: Law = "rademacher",
        dequantise: int = 1,
        filling: Filling = "uniform",
        rtol: float = 1e-5,
        atol: float = 1e-5,
    ) -> None:
        require(n >= 1, "n", n, ">= 1")
        require(floor is None or 0 < floor < 1, "floor", floor, "in (0, 1) or null")
        require(probes >= 1, "probes", probes, ">= 1")
        require(dequantise >= 1, "dequantise", dequantise, ">= 1")
        require(rtol > 0, "rtol", rtol, "> 0")
        require(atol > 0, "atol", atol, "> 0")
        self.n, self.floor, self.trace, self.law = n, floor, trace, law
        self.probes, self.draws, self.filling = probes, dequantise, filling
        self.rtol, self.atol = rtol, atol

    def __call__(self, subject: Subject) -> Result:
        model, spec = subject.model, subject.model.spec
        continuous(spec, "likelihood")
        process, width = cast(Affine, model.process), spacing(spec)
        floor = start(process, width, self.floor)
        k = process.schedule(floor)
        noise = float(k.sigma / k.alpha)

        def work(batch: Batch, first: int) -> Tensor:
            x0, cond, rng = batch
            counts: Counter[str] = Counter()
            found = []  # log p, (B, probes) per draw
            for i in range(self.draws if width else 1):
                u, log_q = x0.double(), torch.zeros(())
                if width:
                    u, log_q = filled(x0, width, self.filling, noise, rng.at(i))
                log_p = self.solve(model.given(**cond), u, floor, rng.at(i), counts)
                found.append(log_p - log_q.to(log_p).reshape(-1, 1))
            drawn = torch.stack(found)  # (draws, B, probes)
            nats = math.log(len(found)) - drawn.mean(2).logsumexp(0)
            spent = torch.tensor([counts[key] for key in COUNTED] + [len(found)])
            spent = (spent / len(x0)).to(drawn).expand(len(x0), -1)
            return torch.cat((nats[:, None], spent, drawn.mean(0)), 1)

        found = subject.each(self.n, work)
        values = surprise(found[:, 0], spec)
        values |= self._doubt(found[:, 5:], spec.numel)
        *spent, solves = found[:, 1:5].sum(0).tolist()
        notes = self._notes(spec, float(floor), noise, [n / solves for n in spent])
        if outside := int(found[:, 0].isinf().sum()):
            told = f"{outside} of {len(found)} data end where the prior has no density"
            notes = (*notes, told)
        return Result(values, notes=notes, protocol=given(spec))

    def solve(
        self,
        denoiser: Denoiser,
        x0: Tensor,
        floor: Tensor,
        rng: Rng,
        counts: Counter[str],
    ) -> Tensor:
        """log p(x0) in nats by every probe, (B, probes); (B, 1) if exact."""
        process, d = cast(Affine, denoiser.process), x0[0].numel()
        end = torch.full_like(floor, process.span[1])
        ends = torch.stack((floor, end)).to(x0.device)
        exact = self._exact(d)
        probes = basis(x0) if exact else draw(self.probes, self.law, x0, rng)

        def field(clock: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            t = process.instant(clock).clamp(min=ends[0])
            scale = process.chart(t).scale

            def slope(y: Tensor) -> Tensor:
                return process.slope(denoiser(scale * y, t), scale * y, t)

            value, parts = divergences(slope, state[0], probes)
            return value, parts.sum(1, keepdim=True) if exact else parts

        scale, clock = process.chart(ends)
        alpha = process.schedule(ends[0]).alpha
        none = x0.new_zeros(len(x0), 1 if exact else len(probes))
        first = (alpha / scale[0] * x0, none)
        y, gained = integrate(
            field, first, clock, rtol=self.rtol, atol=self.atol, counts=counts
        )
        volume = d * (alpha * scale[1] / scale[0]).log()
        return process.log_prior(scale[1] * y[-1])[:, None] + gained[-1] + volume

    def _exact(self, d: int) -> bool:
        return self.trace == "exact" or (self.trace == "auto" and d <= EXACT)

    def _doubt(self, by_probe: Tensor, d: int) -> dict[str, float]:
        """The standard error that the probes alone leave in the means."""
        n, probes = by_probe.shape
        if probes == 1:
            return {}
        nats = float((by_probe.var(1) / probes).sum().sqrt()) / n
        bits = nats / (d * math.log(2))
        return {"nll_nats_probe_error": nats, "bits_per_dim_probe_error": bits}

    def _notes(
        self, spec: Spec, t: float, noise: float, spent: list[float]
    ) -> tuple[str, ...]:
        """What the numbers mean; `spent` are the means of `COUNTED` per solution."""
        calls, accepted, rejected = spent
        how = f"Hutchinson, {self.law}, {self.probes} per sample"
        notes = [
            meant(spec),
            f"the density of x_0 with the noise of the floor, t = {t:g}, "
            f"sigma / alpha = {noise:g}",
            f"divergence: {'exact' if self._exact(spec.numel) else how}",
            "standard errors are over the data; probe_error is the probes' part",
            f"dopri5, rtol {self.rtol:g}, atol {self.atol:g}; a batch shares steps: "
            f"{calls:.6g} calls, {accepted:.4g} steps and {rejected:.4g} rejected ones",
        ]
        if spacing(spec):
            notes.append(
                f"dequantised: {self.filling}, {self.draws} draws per sample inside "
                "of the logarithm"
            )
        return tuple(notes)
