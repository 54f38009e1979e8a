"""Masks by number: exactly n of L tokens are hidden."""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion_cli.core import Posterior, Spec
from diffusion_cli.processes import processes
from diffusion_cli.processes.counted import Counted
from diffusion_cli.processes.tokens import Masking, belief
from diffusion_cli.rng import Rng


@processes("mask_count")
class MaskCount(Counted, Masking):
    """Exactly n of the L tokens are hidden at t = n / L, all choices equally likely.

    q(x_t | x_0) = 1 / C(L, n);   a step back shows one random hidden position, drawn
    from the belief. This is an autoregressive model in random order:

    -log p(x_0) <= sum over n of 1/n E [sum over hidden i of -log p(x_0i | x_t)]

    Reference: Su 2022, "Talks on generative diffusion models" part 11,
        https://kexue.fm/archives/9271; Hoogeboom et al. 2022, eq. 4, arXiv:2110.02037.
    """

    def __init__(self, data: Spec) -> None:
        super().__init__(data)

    def noise(self, x0: Tensor, rng: Rng) -> Tensor:
        return rng.child("noise").uniform(x0.shape)

    def corrupt(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        return torch.where(self.first(noise, t), self.mask, x0)

    def instant(self, hidden: Tensor) -> Tensor:
        levels = (hidden.double() * self.length).round().clamp(min=1)
        return levels / self.length

    def jump(self, q: Posterior, x: Tensor) -> Tensor:
        hidden = (x == self.mask)[..., None].double()
        return hidden * belief(q) / hidden.sum(1, keepdim=True).clamp(min=1)

    def spoilt(self, x0: Tensor, x: Tensor) -> Tensor:
        return x == self.mask
