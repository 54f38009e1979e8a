"""A convolution that keeps neither its input nor a norm. Registers nothing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion_cli.networks import Recompute
from diffusion_cli.networks.blocks import run
from diffusion_cli.networks.norm import again, silu_norm, traced

aten = torch.ops.aten


def convolved(
    norm: nn.GroupNorm, drop: nn.Module, conv: nn.Conv2d, x: Tensor, mode: Recompute
) -> Tensor:
    """conv(drop(norm(x))); with `norms` only x and what dropout drew are kept.

    Values and gradients are those of the other modes, bit by bit on a CPU; second
    derivatives are summed in another order. What dropout draws is kept there, in a byte
    each: drawing again would take longer than all else that is computed again. A GPU
    draws again.

    Reference: Chen et al. 2016, arXiv:1604.06174.
    """
    if mode != "norms" or not torch.is_grad_enabled():
        return conv(drop(norm(x)))  # type: ignore[no-any-return]
    rate = drop.p if isinstance(drop, nn.Dropout) and drop.training else 0.0
    drawn = None
    if rate and not x.is_cuda:
        drawn = torch.empty_like(x, dtype=torch.uint8).bernoulli_(1 - rate)
    if x.device.type == "cpu" and x.is_contiguous() and not traced():
        own = (norm.weight, norm.bias, conv.weight, conv.bias)
        return _Convolved.apply(x, *own, drawn, 1 - rate, norm, conv)  # type: ignore[no-any-return]

    def plain(x: Tensor, drawn: Tensor | None) -> Tensor:
        y = norm(x)
        y = drop(y) if drawn is None else y * _noise(drawn, y, 1 - rate)
        return conv(y)  # type: ignore[no-any-return]

    return run(plain, True, x, drawn)


class _Convolved(torch.autograd.Function):
    """What `convolved` computes on a CPU, without the frames of checkpointing.

    Its own backward pass has no derivative; where one is asked for, torch's own of the
    plain operations is taken.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gamma: Tensor,
        beta: Tensor,
        weight: Tensor,
        bias: Tensor,
        drawn: Tensor | None,
        keep: float,
        norm: nn.GroupNorm,
        conv: nn.Conv2d,
    ) -> Tensor:
        ctx.save_for_backward(x, gamma, beta, weight, bias, drawn)
        ctx.norm, ctx.keep = (norm.num_groups, norm.eps), keep
        ctx.shape = (conv.stride, conv.padding, conv.dilation, False, (0, 0))
        ctx.shape += (conv.groups,)
        cast = torch.is_autocast_enabled("cpu")
        ctx.kind = torch.get_autocast_dtype("cpu") if cast else weight.dtype
        z, ctx.mean, ctx.rstd = _normed(x, gamma, beta, *ctx.norm)
        y = F.silu(z, inplace=True)
        if drawn is not None:
            y.mul_(_noise(drawn, y, keep))
        y, weight, bias = (each.to(ctx.kind) for each in (y, weight, bias))
        return aten.convolution(y, weight, bias, *ctx.shape)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, drawn = ctx.saved_tensors
        x, gamma, beta, weight, bias = inputs
        if torch.is_grad_enabled():  # to be differentiated once more
            y = silu_norm(x, gamma, beta, *ctx.norm)
            if drawn is not None:
                y = y * _noise(drawn, y, ctx.keep)
            y, weight, bias = (each.to(ctx.kind) for each in (y, weight, bias))
            out = aten.convolution(y, weight, bias, *ctx.shape)
            return *again(out, inputs, slope), None, None, None, None
        wanted, kind = ctx.needs_input_grad, ctx.kind
        z, _, _ = _normed(x, gamma, beta, *ctx.norm)
        y, noise = F.silu(z), None
        if drawn is not None:
            noise = _noise(drawn, y, ctx.keep)
            y.mul_(noise)
        given = (slope, y.to(kind), weight.to(kind), bias.shape, *ctx.shape)
        asked = [any(wanted[:3]), *wanted[3:5]]
        into, *products = aten.convolution_backward(*given, asked)
        outer = [each if each is None else each.to(weight.dtype) for each in products]
        if into is None:
            return None, None, None, *outer, None, None, None, None
        into = into.to(z.dtype)
        if noise is not None:
            into.mul_(noise)
        into = aten.silu_backward(into, z).contiguous()
        size = (x.shape[0], x.shape[1], x[0, 0].numel(), ctx.norm[0])
        inner = aten.native_group_norm_backward(
            into, x, ctx.mean, ctx.rstd, gamma, *size, wanted[:3]
        )
        return *inner, *outer, None, None, None, None


def _normed(
    x: Tensor, gamma: Tensor, beta: Tensor, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The norm of x (B, C, H, W), and mean and 1 / std (B, groups)."""
    size = (x.shape[0], x.shape[1], x[0, 0].numel(), groups)
    return aten.native_group_norm(x, gamma, beta, *size, eps)  # type: ignore[no-any-return]


def _noise(drawn: Tensor, like: Tensor, keep: float) -> Tensor:
    """What dropout multiplies by: 0 or 1 / keep."""
    return drawn.to(like.dtype).div_(keep)
