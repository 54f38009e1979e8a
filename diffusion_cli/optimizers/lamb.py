"""LAMB: Adam's direction, as long as the tensor it moves."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from diffusion_cli.optimizers import optimizers
from diffusion_cli.optimizers.tensorwise import Moves, Tensorwise
from diffusion_cli.settings import require

_LARGEST_NORM = 10.0  # phi(z) = min(z, 10), as in the authors' code


@optimizers("lamb")
class Lamb(Tensorwise):
    """Layer-wise adaptive moments, for large batches.

    r = m' / (sqrt(v') + eps) + weight_decay p;   p <- p - lr phi(|p|) / |r| r

    phi(z) = min(z, 10); the ratio is 1 where a norm is 0, and for norms and biases.

    Reference: You et al. 2020, Algorithm 2, arXiv:1904.00962.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
    ) -> None:
        require(lr > 0, "lr", lr, "> 0")
        require(weight_decay >= 0, "weight_decay", weight_decay, ">= 0")
        require(all(0 <= b < 1 for b in betas), "betas", betas, "in [0, 1)")
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    def first(self, p: Tensor) -> dict[str, Tensor]:
        count = torch.zeros((), device=p.device)
        return {"count": count, "m": torch.zeros_like(p), "v": torch.zeros_like(p)}

    def rule(
        self, p: Tensor, g: Tensor, state: dict[str, Tensor], group: dict[str, Any]
    ) -> Moves:
        b1, b2 = group["betas"]
        count = state["count"] + 1
        m = b1 * state["m"] + (1 - b1) * g
        v = b2 * state["v"] + (1 - b2) * g.square()
        root = (v / (1 - b2**count)).sqrt()
        r = m / (1 - b1**count) / (root + group["eps"]) + group["weight_decay"] * p
        yield p, p - group["lr"] * _trust(p, r) * r
        yield state["m"], m
        yield state["v"], v
        yield state["count"], count


def _trust(p: Tensor, r: Tensor) -> Tensor | float:
    """phi(|p|) / |r|, or 1."""
    if p.ndim < 2:
        return 1.0
    length, move = p.norm(), r.norm()
    ratio = length.clamp(max=_LARGEST_NORM) / move
    return torch.where((length > 0) & (move > 0), ratio, 1.0)
