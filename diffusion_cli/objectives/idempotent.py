"""A generator that leaves its own samples alone."""

from __future__ import annotations

import copy
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from diffusion_cli.core import Posterior
from diffusion_cli.denoiser import Model
from diffusion_cli.objectives import Objective, objectives
from diffusion_cli.processes.pathless import Pathless
from diffusion_cli.rng import Rng
from diffusion_cli.settings import require

HELD = 0.99  # of the record of moves, per step
STILL = 0.05  # a net that moves noise by a smaller part has become the identity


class Terms(NamedTuple):
    """The three losses, (B,) each, and how far noise was moved, ()."""

    kept: Tensor
    again: Tensor
    tight: Tensor
    moved: Tensor


@objectives("idempotent")
class Idempotent(Objective):
    """f(x_0) = x_0 for data, f(f(n)) = f(n) for noise, and for little else.

    loss = kept |f(x_0) - x_0| + again |f'(f(n)) - f(n)| - tight T(|f(y) - y|)
    y = f(n) without gradient,   T(u) = c tanh(u / c),   c = limit |f(x_0) - x_0|

    f' is a frozen copy, refreshed at every step, c is without gradient. It is a GAN
    whose discriminator is |f(x) - x|, and as unstable: f(x) = x makes all terms 0, and
    is a local minimum at these weights; the tight term is unbounded but for T; and
    samples blur or collapse where data are many. `moved`, the running mean of
    |f(n) - n| / |n|, travels in the checkpoint: below 0.05 the net is the identity.
    Train it with optimizer=adam and betas (0.5, 0.999).

    Reference: Shocher et al. 2024, eq. 7-10, arXiv:2311.01462.

    Args:
        kept: Weight of the data's own error.
        again: Weight of the error of a second pass.
        tight: Weight of the term that pushes the second pass away from samples.
        limit: How far, in units of the data's error; 0 is without limit.
        distance: Mean over coordinates of the absolute or of the squared error.
    """

    needs = Pathless
    moved: Tensor

    def __init__(
        self,
        kept: float = 20.0,
        again: float = 20.0,
        tight: float = 2.5,
        limit: float = 1.5,
        distance: Literal["l1", "l2"] = "l1",
    ) -> None:
        super().__init__()
        require(kept > 0, "kept", kept, "> 0")
        require(again >= 0, "again", again, ">= 0")
        require(tight >= 0, "tight", tight, ">= 0")
        require(limit >= 0, "limit", limit, ">= 0")
        self.kept, self.again, self.tight = kept, again, tight
        self.limit, self.power = limit, 1 if distance == "l1" else 2
        self.register_buffer("moved", torch.ones(()))
        self._step = -1
        self._frozen: list[Model] = []  # in a list: no part of the objective's state

    @property
    def collapsed(self) -> bool:
        """Whether the net has become the identity; waits for the device."""
        return float(self.moved) < STILL

    def fits(self, model: Model) -> str | None:
        if not model.parametrisation.second and not model.parametrisation.own:
            return None
        return "trains a map from noise to data; try parametrisation=direct"

    def forward(self, model: Model, x0: Tensor, rng: Rng, **cond: Tensor) -> Tensor:
        process = model.process
        noise = process.noise(x0, rng.child("corruption"))
        terms = self.terms(model, self.frozen(model, rng.step), x0, noise, cond)
        with torch.no_grad():
            self.moved.lerp_(terms.moved.float(), 1 - HELD)
        loss = self.kept * terms.kept + self.again * terms.again
        return (loss + self.tight * terms.tight).float()

    def terms(
        self,
        model: Model,
        frozen: Model,
        x0: Tensor,
        noise: Tensor,
        cond: dict[str, Tensor],
    ) -> Terms:
        """The losses; `tight` has gradients of its outer call alone."""

        def through(net: Model, x: Tensor) -> Tensor:
            end = torch.ones(len(x), dtype=torch.float64, device=x.device)
            q: Posterior = net(x, end, **cond)
            return q.mean

        drawn = through(model, noise)
        kept = self.gap(through(model, x0), x0)
        again = self.gap(through(frozen, drawn), drawn)
        still = drawn.detach()
        push = self.gap(through(model, still), still)
        if self.limit:
            most = (self.limit * kept).detach().clamp(min=1e-12)
            push = most * torch.tanh(push / most)
        moved = (still - noise).norm() / noise.norm()
        return Terms(kept, again, -push, moved.detach())

    def gap(self, one: Tensor, other: Tensor) -> Tensor:
        """The distance per coordinate, (B,)."""
        return (one - other).abs().pow(self.power).flatten(1).mean(1)

    def frozen(self, model: Model, step: int) -> Model:
        """f', a module of its own with the weights of this step."""
        if not self._frozen:
            self._frozen.append(copy.deepcopy(model).requires_grad_(False))
        held = self._frozen[0]
        if step != self._step:
            with torch.no_grad():
                for mine, new in zip(
                    held.parameters(), model.parameters(), strict=True
                ):
                    mine.copy_(new)
                for own, fresh in zip(held.buffers(), model.buffers(), strict=True):
                    own.copy_(fresh)
        self._step = step
        return held
