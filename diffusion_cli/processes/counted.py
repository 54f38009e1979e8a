"""Exactly n of L tokens are spoilt at t = n / L. Registers nothing."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from diffusion_cli.core import Posterior, Spec
from diffusion_cli.processes.tokens import Tokens, choose, per_sample
from diffusion_cli.rng import Rng


class Counted(Tokens):
    """Spoilt tokens come back one by one, or several at once.

    `jump` says which position comes back as which token; a step of one is exact, a
    step of k takes k positions by successive draws and their tokens as independent.
    """

    def __init__(self, data: Spec) -> None:
        super().__init__(data)
        self.levels = max(1, self.length)
        self.span = (1 / self.levels, 1.0)

    @abstractmethod
    def jump(self, q: Posterior, x: Tensor) -> Tensor:
        """P(the next position is i, its token v), float64, sums to 1: (B, L, V)."""

    @abstractmethod
    def spoilt(self, x0: Tensor, x: Tensor) -> Tensor:
        """Which positions are spoilt, (B, L)."""

    def count(self, t: Tensor) -> Tensor:
        """The number of spoilt tokens at a time."""
        return (t.double() * self.length).round().long()

    def first(self, scores: Tensor, t: Tensor) -> Tensor:
        """The positions with the n smallest scores, (B, L), n = t L."""
        rank = scores.argsort(-1).argsort(-1)
        return rank < per_sample(self.count(t), rank)

    def bridge(self, q: Posterior, x: Tensor, t: Tensor, s: Tensor, rng: Rng) -> Tensor:
        law = self.jump(q, x)
        mass = law.sum(-1)
        gumbel = -torch.log(-torch.log(rng.child("place").uniform(x.shape)))
        back = self.first(-(mass.log() + gumbel), t - s) & (mass > 0)
        return torch.where(back, choose(law, rng.child("token")), x)

    def bound(self, q: Posterior, x0: Tensor, x: Tensor, t: Tensor) -> Tensor:
        # L KL(uniform over the spoilt || jump); the last level is the decoder
        spoilt, n = self.spoilt(x0, x), self.count(t).double()
        p = self.jump(q, x).gather(-1, x0[..., None])[..., 0]
        logs = torch.where(spoilt, p, 1.0).clamp(min=1e-300).log()
        return self.length * (-n.log() - logs.sum(1) / n)
