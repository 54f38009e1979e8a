"""What `norm_kernel` computes, by torch: it stands in where there is no Triton."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

aten = torch.ops.aten


def dense(x: Tensor) -> Tensor:
    return x


@torch.no_grad()
def forward(
    x: Tensor, gamma: Tensor, beta: Tensor, groups: int, eps: float, kind: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    size = (*x.shape[:2], x[0, 0].numel(), groups)
    z, mean, rstd = aten.native_group_norm(x.float(), gamma, beta, *size, eps)
    return F.silu(z).to(kind), mean, rstd


@torch.no_grad()
def backward(
    x: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, rstd: Tensor, into: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    size = (*x.shape[:2], x[0, 0].numel(), mean.shape[1])
    shape = (*mean.shape, *[1] * (x.ndim - 1))
    flat = x.float().reshape(shape[0], shape[1], -1)
    normal = ((flat - mean[..., None]) * rstd[..., None]).reshape(x.shape)
    wide = (1, -1, *[1] * (x.ndim - 2))
    z = normal * gamma.view(wide) + beta.view(wide)
    into = aten.silu_backward(into.float(), z).contiguous()
    out, *others = aten.native_group_norm_backward(
        into, x.float().contiguous(), mean, rstd, gamma, *size, [True] * 3
    )
    return out.to(x.dtype), *others
