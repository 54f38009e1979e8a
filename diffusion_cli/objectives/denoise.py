"""The objective behind almost every formulation: believe in the clean data."""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion_cli.core import Point
from diffusion_cli.couplings import Coupling
from diffusion_cli.denoiser import Model
from diffusion_cli.objectives import Objective, TimeLaw, Weight, objectives
from diffusion_cli.objectives.record import ErrorRecord
from diffusion_cli.processes import Process
from diffusion_cli.rng import Rng
from diffusion_cli.settings import require


@objectives("denoise")
class Denoise(Objective):
    """Weighted maximum likelihood of the clean data under the belief.

    loss = mean over coordinates of w(t) (-log q(x_0 | x_t)),   t ~ `time`

    For a point belief this is w(t) |x_0 - E[x_0 | x_t]|^2; training on eps, v, velocity
    or EDM's target are names of w. The squared errors are noted per time, for
    `guidance=analytic guidance.source=loss`.

    Reference: Kingma and Gao 2023, eq. 5, arXiv:2303.00848.

    Args:
        weight: w(t), on the squared error of x_0.
        time: The law of the training times.
        drop: Probability with which a label is left out, for classifier-free guidance.
    """

    def __init__(
        self, weight: Weight, time: TimeLaw, coupling: Coupling, drop: float = 0.0
    ) -> None:
        super().__init__()
        require(0 <= drop < 1, "drop", drop, "in [0, 1)")
        self.weight, self.time, self.coupling, self.drop = weight, time, coupling, drop
        self.record, self.squared = ErrorRecord(), False
        self.times: Tensor | None = None

    @property
    def needs(self) -> type[Process]:  # type: ignore[override]  # the stricter of two
        """What both the weight and the time law ask of the process."""
        return max(self.weight.needs, self.time.needs, key=lambda need: len(need.mro()))

    def fits(self, model: Model) -> str | None:
        if not model.parametrisation.second:
            return None
        return "trains no variance; hybrid, vlb and second_moment do"

    def forward(self, model: Model, x0: Tensor, rng: Rng, **cond: Tensor) -> Tensor:
        process = model.process
        t = self.time(process, rng.child("time"))
        drawn = self.coupling.stream(rng.child("corruption"), **cond)
        noise = process.noise(x0, drawn)
        x0, noise, cond = self.coupling(x0, noise, rng.child("coupling"), **cond)
        if self.drop and "label" in cond:
            kept = rng.child("drop").uniform((len(x0),)) >= self.drop
            cond["label"] = torch.where(kept, cond["label"], -1)
        x = process.corrupt(x0, t, noise)
        q = model(x, t, **cond)
        weight = self.weight(process, t) * self.time.correction(t)
        losses = weight.float() * q.nll(process.aim(x0, x, t)).flatten(1).mean(1)
        self.times, self.squared = t, isinstance(q, Point)
        return losses  # type: ignore[no-any-return]

    def observe(self, process: Process, t: Tensor, losses: Tensor) -> None:
        losses = losses / self.time.correction(t)
        if self.squared:  # else the losses are no squared errors
            self.record.update(process, t, losses / self.weight(process, t))
        self.time.observe(process, t, losses)
