"""Masked tokens in the order of confidence, several at once: MaskGIT."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from diffusion_cli.denoiser import Denoiser
from diffusion_cli.processes import Process
from diffusion_cli.processes.tokens import Masking, belief, choose, laid
from diffusion_cli.rng import Rng
from diffusion_cli.samplers import Sampler, samplers
from diffusion_cli.settings import require


@samplers("confident")
class Confident(Sampler):
    """Draws all hidden tokens and keeps those of which the belief is surest.

    confidence_i = log p(x_0i) + temperature (1 - k / N) gumbel_i

    After step k of N = min(steps, H), where H tokens are hidden at first,
    floor(H cos(pi k / 2N)) still are: a prompt takes no steps, and every step shows a
    token. Few steps suffice for a good sample; but the order is no sample of the
    model's own distribution, whatever the number of steps.

    Reference: Chang et al. 2022, section 3.2, arXiv:2202.04200.

    Args:
        steps: Number of steps; one evaluation each, while tokens are hidden.
        temperature: How far chance decides the order at the start.
    """

    def __init__(self, steps: int = 16, temperature: float = 4.5) -> None:
        require(steps >= 1, "steps", steps, ">= 1")
        require(temperature >= 0, "temperature", temperature, ">= 0")
        self.steps, self.temperature = steps, temperature

    @property
    def needs(self) -> type[Process]:
        return Masking

    @torch.no_grad()
    def trajectory(self, denoiser: Denoiser, x: Tensor, rng: Rng) -> Iterator[Tensor]:
        process = denoiser.process
        assert isinstance(process, Masking)
        for k in range(1, self.steps + 1):
            hidden, own = x == process.mask, rng.at(k).child("confident")
            if not hidden.any():
                yield x
                continue
            q = denoiser(x, process.instant(hidden.double().mean(1)))
            x = laid(q, x)
            hidden = x == process.mask
            n = hidden.sum(1)
            if k == 1:
                first, steps = n, n.clamp(1, self.steps).double()  # (B,)
            part = (k / steps).clamp(max=1)
            p = belief(q)
            token = choose(p, own.child("token"))
            gumbel = -torch.log(-torch.log(own.child("order").uniform(x.shape)))
            sure = p.gather(-1, token[..., None])[..., 0].log()
            sure = sure + self.temperature * (1 - part[:, None]) * gumbel
            rank = sure.masked_fill(~hidden, -math.inf).argsort(-1, True).argsort(-1)
            rest = (first * (math.pi / 2 * part).cos() + 1e-9).floor().long()
            stay = rest.minimum(n - 1).clamp(min=0)
            x = torch.where(hidden & (rank < (n - stay)[:, None]), token, x)
            yield x
