"""The bound on the likelihood of tokens, in bits per token."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor

from diffusion_cli.core import Spec
from diffusion_cli.metrics import Batch, Metric, Result, Subject, metrics
from diffusion_cli.metrics.summaries import given, summary
from diffusion_cli.processes.tokens import Tokens
from diffusion_cli.rng import Rng
from diffusion_cli.settings import require

GOLDEN = 0.6180339887498949  # its multiples modulo 1 fill the unit interval most evenly


@metrics("nelbo")
class Nelbo(Metric):
    """The process's own bound on -log2 p(x_0), per token: an upper bound on the code.

    nelbo = KL(q(x_1 | x_0) || prior) + E_t [bound(t)] - E log p(x_0 | x_first)

    The mean over t takes `times` even times per sample, with offsets that are even over
    the samples; the last term stands alone only in continuous time. Conditional on the
    labels of the data; without guidance.

    Reference: Sahoo et al. 2024, eq. 10, arXiv:2406.07524; Austin et al. 2021, eq. 1,
        arXiv:2107.03006.

    Args:
        n: Number of data.
        times: Times per sample.
    """

    needs = Tokens

    def __init__(self, n: int = 1000, times: int = 8) -> None:
        require(n >= 1, "n", n, ">= 1")
        require(times >= 1, "times", times, ">= 1")
        self.n, self.times = n, times

    @torch.no_grad()
    def __call__(self, subject: Subject) -> Result:
        process, spec = cast(Tokens, subject.model.process), subject.model.spec

        def work(batch: Batch, first: int) -> Tensor:
            x0, cond, rng = batch
            model = subject.model.given(**cond)
            nats = process.leftover(x0)
            place = torch.arange(first, first + len(x0), device=x0.device).double()
            offset = rng.shared().child("offset").uniform((1,)) + place * GOLDEN
            for k in range(self.times):
                t = self._time(process, (offset + k / self.times).frac())
                own = rng.at(k).child("corruption")
                x = process.corrupt(x0, t, process.noise(x0, own))
                nats = nats + process.bound(model(x, t), x0, x, t) / self.times
            return nats + self._decoder(subject, x0, rng, cond)

        bits = subject.each(self.n, work)[:, 0] / (spec.numel * math.log(2))
        values = summary("bits_per_token", bits)
        values["perplexity"] = 2 ** values["bits_per_token"]
        notes = self._notes(process, spec)
        return Result(values, notes=notes, protocol=given(spec))

    def _decoder(
        self, subject: Subject, x0: Tensor, rng: Rng, cond: dict[str, Tensor]
    ) -> Tensor | float:
        process = cast(Tokens, subject.model.process)
        if process.levels is not None:
            return 0.0
        t = torch.full((len(x0),), process.span[0], dtype=torch.float64)
        t = t.to(x0.device)
        own = rng.at(self.times).child("corruption")
        x = process.corrupt(x0, t, process.noise(x0, own))
        return process.decoder(subject.model(x, t, **cond), x0, x)

    @staticmethod
    def _time(process: Tokens, u: Tensor) -> Tensor:
        low, high = process.span
        if process.levels:
            return ((u * process.levels).floor() + 1) / process.levels
        return low + u * (high - low)

    def _notes(self, process: Tokens, spec: Spec) -> tuple[str, ...]:
        notes = [
            f"an upper bound on -log2 p, {self.times} times per sample; one token is "
            "one dimension; the standard error is over the data"
        ]
        if "bits_per_token" in spec.codec:
            known = float(spec.codec["bits_per_token"])
            notes.append(f"the source itself: {known:.5g} bits per token")
        return tuple(notes)
