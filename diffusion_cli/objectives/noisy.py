"""What objectives that read noisy states share: how such states are drawn."""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor

from diffusion_cli.couplings import Coupling
from diffusion_cli.denoiser import Model
from diffusion_cli.objectives import Objective, TimeLaw
from diffusion_cli.processes import Process
from diffusion_cli.processes.affine import Diffusion
from diffusion_cli.rng import Rng
from diffusion_cli.settings import require


class Noisy(NamedTuple):
    """Clean samples, their noise, and what became of them at times t."""

    x0: Tensor
    noise: Tensor
    x: Tensor
    t: Tensor
    cond: dict[str, Tensor]


class NoisyObjective(Objective):
    """Draws times, noise and missing labels as `denoise` does, by the same streams."""

    needs: type[Process] = Diffusion

    def __init__(self, time: TimeLaw, coupling: Coupling, drop: float) -> None:
        super().__init__()
        require(0 <= drop < 1, "drop", drop, "in [0, 1)")
        self.time, self.coupling, self.drop = time, coupling, drop
        self.times: Tensor | None = None

    def draw(
        self, model: Model, x0: Tensor, rng: Rng, cond: dict[str, Tensor]
    ) -> Noisy:
        """A noisy state of every sample; the times stay in `self.times`."""
        process = model.process
        t = self.times = self.time(process, rng.child("time"))
        drawn = self.coupling.stream(rng.child("corruption"), **cond)
        noise = process.noise(x0, drawn)
        x0, noise, cond = self.coupling(x0, noise, rng.child("coupling"), **cond)
        if self.drop and "label" in cond:
            kept = rng.child("drop").uniform((len(x0),)) >= self.drop
            cond["label"] = torch.where(kept, cond["label"], -1)
        return Noisy(x0, noise, process.corrupt(x0, t, noise), t, cond)

    def corrected(self, losses: Tensor, t: Tensor) -> Tensor:
        """Losses (B,) with the importance weights of the time law, float32."""
        return losses.float() * torch.as_tensor(self.time.correction(t)).float()

    def observe(self, process: Process, t: Tensor, losses: Tensor) -> None:
        self.time.observe(process, t, losses / self.time.correction(t))


def diffusion(model: Model) -> Diffusion:
    """The process of a model that was checked to be one."""
    return cast(Diffusion, model.process)
