"""Masked tokens one by one, at the exact times at which they appear."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from diffusion_cli.denoiser import Denoiser
from diffusion_cli.processes import Process
from diffusion_cli.processes.tokens import Absorbing, belief, choose, laid
from diffusion_cli.rng import Rng
from diffusion_cli.samplers import Sampler, samplers


@samplers("first_hitting")
class FirstHitting(Sampler):
    """The chain of infinitely many ancestral steps, by its jumps alone.

    1 - alpha(t') = (1 - alpha(t)) u^(1/n),   u ~ U(0, 1), n tokens hidden at t

    is the time of the next token to appear; it is any hidden one, drawn from the belief
    at that time. One evaluation per token that no prompt says, each
    sample at times of its own.

    Reference: Zheng et al. 2024, section 4, arXiv:2409.02908.
    """

    @property
    def needs(self) -> type[Process]:
        return Absorbing

    @torch.no_grad()
    def trajectory(self, denoiser: Denoiser, x: Tensor, rng: Rng) -> Iterator[Tensor]:
        process = denoiser.process
        assert isinstance(process, Absorbing)
        low, high = process.span
        start = torch.full((len(x),), high, dtype=torch.float64, device=x.device)
        part = 1 - process.schedule(start).alpha
        for i in range(x.shape[1]):
            hidden, own = x == process.mask, rng.at(i).child("hit")
            if not hidden.any():  # the rest was known
                yield x
                return
            n = hidden.sum(1)
            part = part * own.child("time").uniform((len(x),)) ** (1 / n.clamp(min=1))
            t = process.schedule.time(1 - part).clamp(low, high)
            q = denoiser(x, t)
            x = laid(q, x)
            hidden = x == process.mask
            place = own.child("place").uniform(x.shape).masked_fill(~hidden, -1)
            now = torch.zeros_like(hidden).scatter(1, place.argmax(1, True), True)
            drawn = choose(belief(q), own.child("token"))
            x = torch.where(now & hidden, drawn, x)
            yield x
