"""Edits by number: exactly n of L tokens are wrong, and nobody says which."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from diffusion_cli.core import Posterior, Spec
from diffusion_cli.errors import ConfigError
from diffusion_cli.processes import processes
from diffusion_cli.processes.counted import Counted
from diffusion_cli.processes.tokens import belief
from diffusion_cli.rng import Rng


@processes("edit")
class Edit(Counted):
    """Exactly n of the L tokens are replaced by a different one at t = n / L.

    q(x_t | x_0) = 1 / (C(L, n) (V - 1)^n) at Hamming distance n. Comparing x_t with
    x_0 tells what was edited, so a step back undoes one edit,

    P(position i becomes v) = p(x_0i = v | x_t) / sum over j of p(x_0j != x_tj | x_t)

    for v != x_ti, which is exact for the true belief, whose sum is n. At t = 1 every
    token is wrong; the prior is uniform, L log(V / (V - 1)) nats from that. The way
    there is no Markov chain, as x_s does not tell which tokens were edited already: its
    bound stays above the entropy even for the true belief.

    Reference: Su 2022, "Talks on generative diffusion models" part 11,
        https://kexue.fm/archives/9271.
    """

    def __init__(self, data: Spec) -> None:
        super().__init__(data)
        if data.vocab == 1:
            message = "process: `edit` replaces tokens by others, and there is only one"
            raise ConfigError(message, "other data, or process=mask")

    def noise(self, x0: Tensor, rng: Rng) -> Tensor:
        return rng.child("noise").uniform((*x0.shape, 2))

    def corrupt(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        shift = (noise[..., 1] * (self.vocab - 1)).long().clamp(max=self.vocab - 2) + 1
        other = (x0 + shift) % self.vocab
        return torch.where(self.first(noise[..., 0], t), other, x0)

    def prior(self, shape: Sequence[int], rng: Rng) -> Tensor:
        return rng.child("prior").integers(self.vocab, shape)

    def jump(self, q: Posterior, x: Tensor) -> Tensor:
        p = belief(q).masked_fill(one_hot(x, self.vocab).bool(), 0)
        return p / p.sum((1, 2), keepdim=True).clamp(min=1e-300)

    def spoilt(self, x0: Tensor, x: Tensor) -> Tensor:
        return x != x0

    def leftover(self, x0: Tensor) -> Tensor:
        nats = self.length * math.log(self.vocab / (self.vocab - 1))
        return torch.full((len(x0),), nats, dtype=torch.float64, device=x0.device)
