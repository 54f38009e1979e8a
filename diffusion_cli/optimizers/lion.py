"""Lion: the sign of an interpolated momentum."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from diffusion_cli.optimizers import optimizers
from diffusion_cli.optimizers.tensorwise import Moves, Tensorwise
from diffusion_cli.settings import require


@optimizers("lion")
class Lion(Tensorwise):
    """Evolved sign momentum: every entry moves by `lr`.

    p <- p - lr (sign(b1 m + (1 - b1) g) + weight_decay p);   m <- b2 m + (1 - b2) g

    Against AdamW: `lr` 3 to 10 times smaller, `weight_decay` as much larger; batch of
    64 and more.

    Reference: Chen et al. 2023, Algorithm 2, arXiv:2302.06675.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 5e-5,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.04,
    ) -> None:
        require(lr > 0, "lr", lr, "> 0")
        require(weight_decay >= 0, "weight_decay", weight_decay, ">= 0")
        require(all(0 <= b < 1 for b in betas), "betas", betas, "in [0, 1)")
        defaults = {"lr": lr, "betas": betas, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    def first(self, p: Tensor) -> dict[str, Tensor]:
        return {"momentum": torch.zeros_like(p)}

    def rule(
        self, p: Tensor, g: Tensor, state: dict[str, Tensor], group: dict[str, Any]
    ) -> Moves:
        m, (b1, b2) = state["momentum"], group["betas"]
        move = torch.sign(b1 * m + (1 - b1) * g) + group["weight_decay"] * p
        yield p, p - group["lr"] * move
        yield m, b2 * m + (1 - b2) * g
