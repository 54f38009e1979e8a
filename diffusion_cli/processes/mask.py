"""Masked diffusion: tokens are hidden one by one, in continuous time."""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion_cli.core import Posterior, Spec
from diffusion_cli.processes import processes
from diffusion_cli.processes.tokens import (
    Absorbing,
    Survival,
    belief,
    log_belief,
    per_sample,
)
from diffusion_cli.rng import Rng
from diffusion_cli.settings import require


@processes("mask")
class Mask(Absorbing):
    """Every token is hidden with probability 1 - alpha(t), and stays hidden.

    q(x_t = x_0) = alpha_t, q(x_t = MASK) = 1 - alpha_t. A hidden token stays hidden
    with probability (1 - alpha_s) / (1 - alpha_t), else it is drawn from the belief;
    visible ones are carried over. The bound, for any schedule:

    -log p(x_0) <= E_t [alpha'_t / (1 - alpha_t) sum over hidden i of log p(x_0i | x_t)]

    Reference: Sahoo et al. 2024, eq. 6 and 10, arXiv:2406.07524; Austin et al. 2021,
        section 3.1 (absorbing state), arXiv:2107.03006.

    Args:
        schedule: alpha(t).
        floor: Smallest time that is trained and sampled.
    """

    def __init__(self, data: Spec, schedule: Survival, floor: float = 1e-3) -> None:
        super().__init__(data)
        require(0 < floor < 1, "floor", floor, "in (0, 1)")
        self.schedule, self.span = schedule, (floor, 1.0)

    def noise(self, x0: Tensor, rng: Rng) -> Tensor:
        return rng.child("noise").uniform(x0.shape)

    def corrupt(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        kept = per_sample(self.schedule(t).alpha, x0)
        return torch.where(noise < kept, x0, self.mask)

    def instant(self, hidden: Tensor) -> Tensor:
        return self.schedule.time(1 - hidden).clamp(*self.span)

    def step(self, q: Posterior, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        before, after = self.schedule(s).alpha, self.schedule(t).alpha
        shown = per_sample((before - after) / (1 - after), x, 1)
        hidden = (x == self.mask)[..., None]
        tokens = torch.nn.functional.one_hot(x, self.vocab + 1).double()
        drawn = torch.cat((shown * belief(q), (1 - shown) * hidden), -1)
        return torch.where(hidden, drawn, tokens)

    def bound(self, q: Posterior, x0: Tensor, x: Tensor, t: Tensor) -> Tensor:
        kept, (low, high) = self.schedule(t), self.span
        rate = -kept.dalpha / (1 - kept.alpha) * (high - low)
        return -rate * (log_belief(q, x0) * (x == self.mask)).sum(1)

    def decoder(self, q: Posterior, x0: Tensor, x: Tensor) -> Tensor:
        return -(log_belief(q, x0) * (x == self.mask)).sum(1)
