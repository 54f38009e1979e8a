"""Torch's own optimisers, fused: one kernel for all tensors, at the memory's speed."""

from __future__ import annotations

from typing import Any

import torch

from diffusion_cli.optimizers import optimizers
from diffusion_cli.settings import require


def _eager(step: Any) -> Any:
    """Torch's step without the import of its compiler, which it only tells to wait."""
    return torch.no_grad()(getattr(step, "__wrapped__", step))


def _check(lr: float, weight_decay: float, *betas: float) -> None:
    require(lr > 0, "lr", lr, "> 0")
    require(weight_decay >= 0, "weight_decay", weight_decay, ">= 0")
    for beta in betas:
        require(0 <= beta < 1, "betas", beta, "in [0, 1)")


@optimizers("adamw")
class AdamW(torch.optim.AdamW):
    """Adam with decoupled weight decay.

    m <- b1 m + (1 - b1) g;   v <- b2 v + (1 - b2) g^2
    p <- p - lr (m' / (sqrt(v') + eps) + weight_decay p),  m', v' without start-up bias

    Reference: Loshchilov and Hutter 2019, Algorithm 2, arXiv:1711.05101.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 2e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        _check(lr, weight_decay, *betas)
        require(eps >= 0, "eps", eps, ">= 0")
        super().__init__(params, lr, betas, eps, weight_decay, fused=True)

    step = _eager(torch.optim.AdamW.step)


@optimizers("adam")
class Adam(torch.optim.Adam):
    """Adam; `weight_decay` is added to the gradient.

    m <- b1 m + (1 - b1) g;   v <- b2 v + (1 - b2) g^2
    p <- p - lr m' / (sqrt(v') + eps),  m', v' without start-up bias

    Reference: Kingma and Ba 2015, Algorithm 1, arXiv:1412.6980.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 2e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        _check(lr, weight_decay, *betas)
        require(eps >= 0, "eps", eps, ">= 0")
        super().__init__(params, lr, betas, eps, weight_decay, fused=True)

    step = _eager(torch.optim.Adam.step)


@optimizers("sgd")
class SGD(torch.optim.SGD):
    """Stochastic gradient descent with momentum.

    m <- momentum m + g;   p <- p - lr m

    Reference: Sutskever et al. 2013, "On the importance of initialization and momentum
    in deep learning", equations 1 and 2, in torch's form.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-2,
        momentum: float = 0.9,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        _check(lr, weight_decay, momentum)
        plain = momentum > 0 or not nesterov
        require(plain, "nesterov", nesterov, "false without momentum")
        super().__init__(
            params,
            lr,
            momentum,
            weight_decay=weight_decay,
            nesterov=nesterov,
            fused=True,
        )

    step = _eager(torch.optim.SGD.step)
