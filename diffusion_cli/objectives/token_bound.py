"""The bound on the likelihood of tokens, of whatever process spoils them."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from diffusion_cli.couplings import Coupling
from diffusion_cli.denoiser import Model
from diffusion_cli.objectives import Objective, TimeLaw, objectives
from diffusion_cli.processes import Process
from diffusion_cli.processes.tokens import Tokens
from diffusion_cli.rng import Rng
from diffusion_cli.settings import require


@objectives("token_bound")
class TokenBound(Objective):
    """The process's own bound on -log p(x_0), and a part of the cross-entropy.

    loss = bound(t) / L + ce (-log p(x_0 | x_t)),   t ~ `time`, nats per token

    `mask` in continuous time: -alpha' / (1 - alpha) on hidden tokens (MDLM). Discrete
    times: T KL(q(x_s | x_t, x_0) || p(x_s | x_t)) (D3PM). The bound is the mean over
    uniform times; a weight other than its own makes it another loss: use `denoise`.

    Reference: Sahoo et al. 2024, eq. 10, arXiv:2406.07524; Austin et al. 2021, eq. 5,
        arXiv:2107.03006.

    Args:
        time: The law of the training times.
        ce: Weight of the cross-entropy of all tokens; D3PM's hybrid has 0.001.
        drop: Probability with which a label is left out, for classifier-free guidance.
    """

    needs: type[Process] = Tokens

    def __init__(
        self, time: TimeLaw, coupling: Coupling, ce: float = 0.0, drop: float = 0.0
    ) -> None:
        super().__init__()
        require(ce >= 0, "ce", ce, ">= 0")
        require(0 <= drop < 1, "drop", drop, "in [0, 1)")
        self.time, self.coupling, self.ce, self.drop = time, coupling, ce, drop
        self.times: Tensor | None = None

    def forward(self, model: Model, x0: Tensor, rng: Rng, **cond: Tensor) -> Tensor:
        process = cast(Tokens, model.process)
        t = self.times = self.time(process, rng.child("time"))
        noise = process.noise(x0, rng.child("corruption"))
        x0, noise, cond = self.coupling(x0, noise, rng.child("coupling"), **cond)
        if self.drop and "label" in cond:
            kept = rng.child("drop").uniform((len(x0),)) >= self.drop
            cond["label"] = torch.where(kept, cond["label"], -1)
        x = process.corrupt(x0, t, noise)
        q = model(x, t, **cond)
        losses = process.bound(q, x0, x, t) / x0[0].numel()
        if self.ce:
            losses = losses + self.ce * q.nll(x0).mean(1)
        return (losses * self.time.correction(t)).float()

    def observe(self, process: Process, t: Tensor, losses: Tensor) -> None:
        self.time.observe(process, t, losses / self.time.correction(t))
