"""Few steps: learn where a trajectory ends, not the mean of all that lead here."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor

from diffusion_cli.couplings import Coupling
from diffusion_cli.denoiser import Model
from diffusion_cli.objectives import TimeLaw, Weight, objectives
from diffusion_cli.objectives.noisy import NoisyObjective
from diffusion_cli.processes.affine import Affine, like
from diffusion_cli.rng import Rng
from diffusion_cli.settings import require

NEAR = 0.1  # how far a belief at the smallest time may follow the network


@objectives("consistency")
class Consistency(NoisyObjective):
    """A belief f that is the same along a trajectory, and so its end: one-step nets.

    L = w(t) |f(x_t, t) - stop f(x_s, s)|^2 / d,   s = t (1 - gap),   f(x_0, 0) = x_0
    loss = L / stop(L + softening)^power
    gap = max(first 2^(-step / halving), least)

    x_s is x_0 with the same noise. A gap of 1 is `denoise`; as it closes, f(x_t) tends
    to x_0 = ODE(x_t) without asking a teacher. init=RUN begins at a trained model of
    the same parametrisation, first=0.25 or so then spares it the way. `least` is a
    bias, of first order, against the noise of gradients. sampler=restart takes one step
    or a few.

    Reference: Song et al. 2023, algorithm 3, arXiv:2303.01469; Geng et al. 2024, eq. 12
        and section 3, "Consistency models made easy", arXiv:2406.14548.

    Args:
        weight: w(t), on the squared error of x_0.
        time: The law of the training times.
        first: The gap of the first step, a part of t.
        halving: Steps in which the gap closes by half.
        least: The gap at which it stays.
        power: How far large losses are scaled down: 0 is the squared error.
        softening: What keeps a small loss from being scaled up.
        drop: Probability with which a label is left out, for classifier-free guidance.
    """

    needs = Affine

    def __init__(
        self,
        weight: Weight,
        time: TimeLaw,
        coupling: Coupling,
        first: float = 1.0,
        halving: int = 500,
        least: float = 0.02,
        power: float = 0.0,
        softening: float = 1e-3,
        drop: float = 0.0,
    ) -> None:
        super().__init__(time, coupling, drop)
        require(0 < first <= 1, "first", first, "in (0, 1]")
        require(halving >= 1, "halving", halving, ">= 1")
        require(0 < least <= first, "least", least, f"in (0, first={first:g}]")
        require(0 <= power <= 1, "power", power, "in [0, 1]")
        require(softening > 0, "softening", softening, "> 0")
        self.weight, self.power, self.softening = weight, power, softening
        self.first, self.halving, self.least = first, halving, least

    def fits(self, model: Model) -> str | None:
        """Whether f(x, t) = x at the smallest time, whatever the network says."""
        reading, process = model.parametrisation, model.process
        if reading.second:
            return "trains no variance; hybrid, vlb and second_moment do"
        x, t = torch.full((1, *model.spec.shape), 0.5), torch.tensor(process.span[0])
        outs = (torch.full((1, *reading.out(model.spec)), v) for v in (-1.0, 1.0))
        ends = [reading.posterior(out, x, t.double(), process).mean for out in outs]
        if all(bool(((end - x).abs() < NEAR).all()) for end in ends):
            return None
        return "needs a belief that is x_t itself at t = 0: velocity, v, eps or edm"

    def forward(self, model: Model, x0: Tensor, rng: Rng, **cond: Tensor) -> Tensor:
        process = cast(Affine, model.process)
        x0, noise, x, t, cond = self.draw(model, x0, rng, cond)
        f = model(x, t, **cond).mean
        losses = (f - self.target(model, x0, noise, t, rng.step, cond)).square()
        losses = self.weight(process, t) * losses.flatten(1).mean(1)
        losses = losses / (losses.detach() + self.softening) ** self.power
        return self.corrected(losses, t)

    @torch.no_grad()
    def target(
        self,
        model: Model,
        x0: Tensor,
        noise: Tensor,
        t: Tensor,
        step: int,
        cond: dict[str, Tensor],
    ) -> Tensor:
        """f at the earlier time, x_0 itself where that is before the smallest."""
        s, low = t * (1 - self.gap(step)), model.process.span[0]
        late = s.clamp(min=low)
        end = model(model.process.corrupt(x0, late, noise), late, **cond).mean
        return torch.where(like((s < low).to(x0.dtype), x0) > 0, x0, end)

    def gap(self, step: int) -> float:
        """How much earlier a target is at a training step, a part of t."""
        closed = math.exp2(-step / self.halving)
        return max(self.first * closed, self.least)
