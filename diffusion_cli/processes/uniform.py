"""Uniform diffusion of tokens: each is replaced by any other, in continuous time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from diffusion_cli.core import Posterior, Spec
from diffusion_cli.processes import processes
from diffusion_cli.processes.tokens import Factorised, Survival, belief, per_sample
from diffusion_cli.rng import Rng
from diffusion_cli.settings import require


@processes("uniform")
class Uniform(Factorised):
    """Every token is drawn anew, uniformly, with probability 1 - alpha(t).

    q(x_t | x_0) = alpha_t [x_t = x_0] + (1 - alpha_t) / V, in closed form, and the step
    is the mixture of q(x_s | x_t, x_0) over the belief. With the ratios
    r_q(y) = q(y | x_0) / q(x_t | x_0) and r_p, their mean over the belief, the bound is

    -log p(x_0) <= E_t [-alpha'_t / (alpha_t V) sum over y != x_t of
                        r_p(y) - r_q(y) + r_q(y) log(r_q(y) / r_p(y))]

    per position.

    Reference: Austin et al. 2021, section 3.1 and appendix A.2.1, arXiv:2107.03006;
        Campbell et al. 2022, proposition 2 (the bound), arXiv:2205.14987.

    Args:
        schedule: alpha(t).
        floor: Smallest time that is trained and sampled.
    """

    def __init__(self, data: Spec, schedule: Survival, floor: float = 1e-3) -> None:
        super().__init__(data)
        require(0 < floor < 1, "floor", floor, "in (0, 1)")
        self.schedule, self.span = schedule, (floor, 1.0)

    def noise(self, x0: Tensor, rng: Rng) -> Tensor:
        return rng.child("noise").uniform((*x0.shape, 2))

    def corrupt(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        kept = per_sample(self.schedule(t).alpha, x0)
        other = (noise[..., 1] * self.vocab).long().clamp(max=self.vocab - 1)
        return torch.where(noise[..., 0] < kept, x0, other)

    def prior(self, shape: Sequence[int], rng: Rng) -> Tensor:
        return rng.child("prior").integers(self.vocab, shape)

    def step(self, q: Posterior, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        before = per_sample(self.schedule(s).alpha, x, 1)
        after = per_sample(self.schedule(t).alpha, x, 1)
        here = torch.nn.functional.one_hot(x, self.vocab).double()

        def rows(alpha: Tensor) -> Tensor:  # a row or a column of the transition
            return alpha * here + (1 - alpha) / self.vocab

        share = belief(q) / rows(after)  # p(x_0) / q(x_t | x_0)
        mixed = before * share + (1 - before) / self.vocab * share.sum(-1, True)
        return rows(after / before) * mixed

    def bound(self, q: Posterior, x0: Tensor, x: Tensor, t: Tensor) -> Tensor:
        kept, (low, high) = self.schedule(t), self.span
        alpha = per_sample(kept.alpha, x).clamp(min=1e-9)  # 0 / 0 at t = 1
        other = (1 - alpha) / self.vocab
        same, size = alpha + other, self.vocab
        p = belief(q)
        here = torch.nn.functional.one_hot(x, size).bool()
        at_x = p.gather(-1, x[..., None])  # (B, L, 1)
        rise, fall = ((same / other)[..., None], (other / same)[..., None])
        modelled = 1 + at_x * (fall - 1) + p * (rise - 1)  # r_p(y), (B, L, V)
        truth = torch.nn.functional.one_hot(x0, size).double()
        true = 1 + truth.gather(-1, x[..., None]) * (fall - 1) + truth * (rise - 1)
        terms = modelled - true + true * (true / modelled).log()
        rate = -per_sample(kept.dalpha, x) / (alpha * size) * (high - low)
        return (rate * terms.masked_fill(here, 0).sum(-1)).sum(1)

    def leftover(self, x0: Tensor) -> Tensor:
        alpha = float(self.schedule(torch.tensor(1.0, dtype=torch.float64)).alpha)
        other, size = (1 - alpha) / self.vocab, self.vocab
        same = alpha + other
        nats = same * math.log(same * size)
        nats += (size - 1) * other * math.log(other * size)
        whole = nats * x0[0].numel()
        return torch.full((len(x0),), whole, dtype=torch.float64, device=x0.device)
