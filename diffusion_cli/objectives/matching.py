"""Score matching that knows no noise: derivatives of the score take its place.

Registers nothing.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from diffusion_cli.couplings import Coupling
from diffusion_cli.denoiser import Model
from diffusion_cli.objectives import TimeLaw, Weight
from diffusion_cli.objectives.noisy import NoisyObjective, diffusion
from diffusion_cli.rng import Rng


class ScoreMatching(NoisyObjective):
    """The loss of `denoise`, in expectation, from states alone.

    loss = w(t) sigma^2 / alpha^2 (1 + (|r|^2 + 2 sigma tr dr/dx) / d)
    r = sigma s(x_t) = (alpha E[x_0 | x_t] - x_t) / sigma

    By parts E[n . r] = sigma E[tr dr/dx], so this is E w(t) |x_0 - E[x_0 | x_t]|^2 / d
    for any belief. Attention has to be plain: the trace is differentiated again.

    Reference: Hyvarinen 2005, theorem 1, "Estimation of non-normalized statistical
        models by score matching"; Vincent 2011, "A connection between score matching
        and denoising autoencoders".
    """

    plain = True
    independent = True

    def __init__(
        self, weight: Weight, time: TimeLaw, coupling: Coupling, drop: float
    ) -> None:
        super().__init__(time, coupling, drop)
        self.weight = weight

    def fits(self, model: Model) -> str | None:
        if model.parametrisation.second:
            return "trains no variance; hybrid, vlb and second_moment do"
        return None

    def forward(self, model: Model, x0: Tensor, rng: Rng, **cond: Tensor) -> Tensor:
        process = diffusion(model)
        _, _, x, t, cond = self.draw(model, x0, rng, cond)
        with torch.enable_grad():  # by the state, also where no weight is to learn
            x = x.detach().requires_grad_()
            k = process.at(t, x)
            r = (k.alpha * model(x, t, **cond).mean - x) / k.sigma
            square, trace = self.parts(r, x, rng.child("slices"))
            k, d = process.scales(t), x[0].numel()
            inner = 1 + (square + 2 * k.sigma * trace) / d
            losses = self.weight(process, t) * (k.sigma / k.alpha) ** 2 * inner
        return self.corrected(losses, t)

    @abstractmethod
    def parts(self, r: Tensor, x: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
        """Estimates of |r|^2 and of tr dr/dx, (B,) each, to be differentiated again."""


def product(r: Tensor, x: Tensor, v: Tensor) -> Tensor:
    """v^T dr/dx v, (B,): r may depend on the x of its own sample alone."""
    (pulled,) = torch.autograd.grad((r * v).sum(), x, create_graph=True)
    total: Tensor = (pulled * v).flatten(1).sum(1)
    return total
