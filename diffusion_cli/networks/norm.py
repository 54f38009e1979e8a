"""Group normalisation and silu in one layer. Registers nothing."""

from __future__ import annotations

import logging
from functools import lru_cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

_log = logging.getLogger(__name__)
KINDS = (torch.float32, torch.bfloat16, torch.float16)


class NormSilu(nn.GroupNorm):
    """silu(group_norm(x)), z / (1 + exp(-z)) of z = gamma (x - mean) / std + beta.

    On a GPU one kernel computes it, in float32 from numbers to numbers of the precision
    of autocast, and only x is kept for the backward pass.

    Reference: Wu and He 2018, equation 1, arXiv:1803.08494.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, ...) to the same shape."""
        if x.is_cuda and x.dtype in KINDS and not traced():
            kernel = _kernel(x.device)
            if kernel is not None:
                return _fused(kernel, self, x)
        return silu_norm(x, self.weight, self.bias, self.num_groups, self.eps)


def silu_norm(
    x: Tensor, gamma: Tensor, beta: Tensor, groups: int, eps: float
) -> Tensor:
    """The same by torch."""
    return F.silu(F.group_norm(x, groups, gamma, beta, eps))


def traced() -> bool:
    """Whether somebody looks into an operation: a compiler, a transform, a dual."""
    return (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
    )


def again(
    out: Tensor, inputs: tuple[Tensor, ...], slope: Tensor
) -> list[Tensor | None]:
    """Gradients of `out` that have a derivative; None for inputs that have none."""
    wanted = [each for each in inputs if each.requires_grad]
    found = iter(torch.autograd.grad(out, wanted, slope, create_graph=True))
    return [next(found) if each.requires_grad else None for each in inputs]


def _fused(kernel: ModuleType, norm: nn.GroupNorm, x: Tensor) -> Tensor:
    cast = torch.is_autocast_enabled("cuda")
    kind = torch.get_autocast_dtype("cuda") if cast else x.dtype
    given = (norm.weight, norm.bias, norm.num_groups, norm.eps, kind)
    if torch.is_grad_enabled():
        return _Fused.apply(kernel, kernel.dense(x), *given)  # type: ignore[no-any-return]
    return kernel.forward(kernel.dense(x), *given)[0]  # type: ignore[no-any-return]


class _Fused(torch.autograd.Function):
    """Both kernels; a second derivative is torch's, of the plain operations."""

    @staticmethod
    def forward(
        ctx: Any,
        kernel: ModuleType,
        x: Tensor,
        gamma: Tensor,
        beta: Tensor,
        groups: int,
        eps: float,
        kind: torch.dtype,
    ) -> Tensor:
        out, mean, rstd = kernel.forward(x, gamma, beta, groups, eps, kind)
        ctx.save_for_backward(x, gamma, beta, mean, rstd)
        ctx.kernel, ctx.norm = kernel, (groups, eps)
        return out  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Any, ...]:
        x, gamma, beta, mean, rstd = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated once more
            out = silu_norm(x.float(), gamma, beta, *ctx.norm).to(slope.dtype)
            found = again(out, (x, gamma, beta), slope)
        else:
            found = ctx.kernel.backward(x, gamma, beta, mean, rstd, slope)
        return None, *found, None, None, None


@lru_cache
def _kernel(device: torch.device) -> ModuleType | None:
    """The kernels, if they can be built here and agree with torch."""
    try:
        from diffusion_cli import norm_kernel

        with torch.autocast(device.type, enabled=False):
            if all(agrees(norm_kernel, device, kind) for kind in KINDS[:2]):
                return norm_kernel
        reason = "it gives other values"
    except torch.OutOfMemoryError:
        raise  # which says nothing about the kernel
    except Exception as error:  # no Triton, no compiler for it, a device it is not for
        reason = f"{type(error).__name__}: {error}"
    _log.warning("norms take several kernels instead of one: %s", reason)
    return None


@torch.no_grad()  # a checkpoint that is asked around this would count what is kept
def agrees(kernel: ModuleType, device: torch.device, kind: torch.dtype) -> bool:
    """Whether values and gradients are those of torch, in both layouts."""
    count, near = 2 * 24 * 3 * 5, 1e-4 if kind is torch.float32 else 0.02
    wave = torch.arange(2 * count, device=device).mul(1.7).sin().reshape(2, 2, 24, 3, 5)
    gamma, beta = 1 + wave[0, 0, :, 0, 0], wave[0, 1, :, 0, 0]
    size, aten = (2, 24, 15, 2), torch.ops.aten
    for layout in (torch.contiguous_format, torch.channels_last):
        x, slope = (each.to(kind).contiguous(memory_format=layout) for each in wave)
        exact, into = (each.float().contiguous() for each in (x, slope))
        z, mean, rstd = aten.native_group_norm(exact, gamma, beta, *size, 1e-6)
        into = aten.silu_backward(into, z)
        slopes = aten.native_group_norm_backward(
            into, exact, mean, rstd, gamma, *size, [True] * 3
        )
        out, mean, rstd = kernel.forward(x, gamma, beta, 2, 1e-6, kind)
        found = (out, *kernel.backward(x, gamma, beta, mean, rstd, slope))
        for one, two in zip(found, (F.silu(z), *slopes), strict=True):
            if not torch.allclose(one.float(), two.float(), near, near):
                return False
    return True
