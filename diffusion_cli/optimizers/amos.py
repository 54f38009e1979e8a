"""Amos: Adam's scale, with a decay of rate and weights that it derives itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from diffusion_cli.optimizers import optimizers
from diffusion_cli.optimizers.tensorwise import Moves, Tensorwise
from diffusion_cli.settings import require

_SMALL_TENSOR = 0.5  # expected scale of norms and biases, as in the authors' code
_TINY = 1e-30  # a tensor that never had a gradient stays where it is


@optimizers("amos")
class Amos(Tensorwise):
    """Adaptive weight decay towards a model-oriented scale; needs no schedule.

    v <- beta v + (1 - beta) mean(g^2);   v' = v / (1 - beta^count)
    gamma = lr^2 mean(g^2) / v' / sqrt(1 + c sqrt(lr) b)
    p <- p - (lr eta g / sqrt(v') + gamma p / 2) / (1 + d sqrt(lr eta) b)
    b <- b + gamma (1 + b)

    `eta` is the expected scale of a tensor's entries: their standard deviation at the
    start, 1 / sqrt(fan-in) for a matrix of zeros, 1/2 for norms and biases.

    Reference: Tian and Parikh 2022, Algorithm 1, arXiv:2210.11693.

    Args:
        lr: About 1 / sqrt(number of independent batches of the run).
        eta: One scale for all tensors instead.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 2e-3,
        beta: float = 0.999,
        c: float = 0.25,
        d: float = 0.25,
        eta: float | None = None,
    ) -> None:
        require(lr > 0, "lr", lr, "> 0")
        require(0 <= beta < 1, "beta", beta, "in [0, 1)")
        require(c >= 0 and d >= 0, "c, d", (c, d), ">= 0")
        require(eta is None or eta > 0, "eta", eta, "> 0 or null")
        self.eta = eta
        super().__init__(params, {"lr": lr, "beta": beta, "c": c, "d": d})

    def first(self, p: Tensor) -> dict[str, Tensor]:
        zero = torch.zeros((), device=p.device)
        own = p.new_tensor(_SMALL_TENSOR)
        if p.ndim >= 2:
            spread = p.square().mean().sqrt()
            own = torch.where(spread > 0, spread, p[0].numel() ** -0.5)
        eta = own if self.eta is None else p.new_tensor(self.eta)
        return {"count": zero, "v": zero.clone(), "b": zero.clone(), "eta": eta}

    def rule(
        self, p: Tensor, g: Tensor, state: dict[str, Tensor], group: dict[str, Any]
    ) -> Moves:
        lr, beta, eta, b = group["lr"], group["beta"], state["eta"], state["b"]
        count, square = state["count"] + 1, g.square().mean()
        v = beta * state["v"] + (1 - beta) * square
        mean = (v / (1 - beta**count)).clamp_min(_TINY)
        gamma = lr**2 * square / mean / (1 + group["c"] * lr**0.5 * b).sqrt()
        brake = 1 + group["d"] * (lr * eta).sqrt() * b
        yield p, p - (lr * eta * g / mean.sqrt() + gamma * p / 2) / brake
        yield state["v"], v
        yield b, b + gamma * (1 + b)
        yield state["count"], count
