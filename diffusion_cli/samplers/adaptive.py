"""The probability-flow ODE with steps that an error estimate chooses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor

from diffusion_cli.denoiser import Denoiser
from diffusion_cli.odes import integrate
from diffusion_cli.processes import Flow, Process
from diffusion_cli.rng import Rng
from diffusion_cli.samplers import Sampler, samplers
from diffusion_cli.settings import require


@samplers("dopri5")
class Dopri5(Sampler):
    """Dormand and Prince's adaptive method of order 5 on the probability-flow ODE.

    dy / d log c = c dy/dc,   local error of every sample <= atol + rtol |y|

    y = x / scale and c are the coordinates of the process's chart, from t = 1 to the
    first time trained, where the belief is returned; in log c steps keep their size and
    few are rejected. The state is float64 whatever the denoiser computes in. The batch
    shares its steps, so that a sample depends on the batch around it to within the
    tolerance. A process of discrete times is asked between them.

    Reference: Dormand and Prince 1980, "A family of embedded Runge-Kutta formulae";
        Song et al. 2021, section 4.3, arXiv:2011.13456.

    Args:
        rtol: Relative tolerance.
        atol: Absolute tolerance.
        frames: Number of states to show; the steps do not depend on it.
    """

    order = 5

    def __init__(
        self, rtol: float = 1e-5, atol: float = 1e-5, frames: int = 16
    ) -> None:
        require(rtol > 0, "rtol", rtol, "> 0")
        require(atol > 0, "atol", atol, "> 0")
        require(frames >= 1, "frames", frames, ">= 1")
        self.rtol, self.atol, self.frames = rtol, atol, frames
        self.counts: Counter[str] = Counter()

    @property
    def needs(self) -> type[Process]:
        return Flow

    def calls(self, steps: int) -> int:
        """Number of denoiser calls so far: nobody knows it beforehand."""
        return self.counts["calls"]

    def counted(self) -> dict[str, int]:
        return {key: self.counts[key] for key in ("accepted", "rejected")}

    @torch.no_grad()
    def trajectory(self, denoiser: Denoiser, x: Tensor, rng: Rng) -> Iterator[Tensor]:
        process = cast(Flow, denoiser.process)
        low, high = process.span
        times = torch.linspace(high, low, self.frames + 1, dtype=torch.float64)
        chart = process.chart(times)

        def field(log: Tensor, y: Tensor) -> Tensor:
            clock = log.cpu().exp()
            t = process.instant(clock)
            state = process.chart(t).scale * y
            q = denoiser(state.to(x.dtype), t)
            return clock * process.slope(q.around(q.mean.double()), state, t)

        path = integrate(
            field,
            x.double() / chart.scale[0],
            chart.clock.log(),
            rtol=self.rtol,
            atol=self.atol,
            counts=self.counts,
        )
        for scale, y in zip(chart.scale[1:], path[1:], strict=True):
            x = (scale * y).to(x.dtype)
            yield x
        self.counts["calls"] += 1
        yield denoiser(x, times[-1]).mean
