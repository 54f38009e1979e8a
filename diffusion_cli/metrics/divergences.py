"""Divergences of a field: exact, or by Hutchinson's probes. Registers nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from diffusion_cli.rng import Rng

Law = Literal["rademacher", "gaussian"]


def basis(x: Tensor) -> Tensor:
    """Every unit vector, (d, 1, ...): the sum of `divergences` over them is exact."""
    d = x[0].numel()
    return torch.eye(d, dtype=x.dtype, device=x.device).reshape(d, 1, *x.shape[1:])


def draw(probes: int, law: Law, x: Tensor, rng: Rng) -> Tensor:
    """Vectors w with E[w w^T] = I, (probes, B, ...)."""
    shape = (len(x), *x.shape[1:])
    streams = [rng.child(f"probe-{k}") for k in range(probes)]
    if law == "gaussian":
        return torch.stack([one.normal(shape, x.dtype) for one in streams])
    return torch.stack([2.0 * one.integers(2, shape).to(x) - 1 for one in streams])


def divergences(
    field: Callable[[Tensor], Tensor], x: Tensor, probes: Tensor
) -> tuple[Tensor, Tensor]:
    """The field, and w^T (df/dx) w for every probe w: (B, ...), (B, probes).

    One evaluation, one vector-Jacobian product per probe; no second derivatives.

    Reference: Hutchinson 1989, "A stochastic estimator of the trace of the influence
        matrix"; Grathwohl et al. 2019, section 3.1, arXiv:1810.01367.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        value = field(x)
        columns = []
        for k, probe in enumerate(probes):
            more = k + 1 < len(probes)
            (back,) = torch.autograd.grad(
                value, x, probe.expand_as(value), retain_graph=more
            )
            columns.append((back * probe).flatten(1).sum(1))
    return value.detach(), torch.stack(columns, 1)
