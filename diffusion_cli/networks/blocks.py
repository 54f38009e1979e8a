"""Layers the networks share: embeddings, attention, initialisation, recomputation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from diffusion_cli.core import Spec
from diffusion_cli.networks import Recompute
from diffusion_cli.networks.norm import NormSilu

Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)


def xavier(layer: Layer) -> Layer:
    """The layer with weights U(-a, a), a^2 = 6 / (fan_in + fan_out), and zero bias.

    Reference: Glorot and Bengio 2010; the initialisation of DDPM and of DiT.
    """
    nn.init.xavier_uniform_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def zeroed(layer: Layer) -> Layer:
    """The layer with all parameters zero: the branch it ends starts as nothing."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def doubled(out: tuple[int, ...], state: Spec) -> bool:
    """Whether `out` is two read-outs in the shape of the state, one after the other."""
    return out == (2 * state.shape[0], *state.shape[1:])


def second_head(first: Layer, last: Layer) -> nn.Module:
    """One hidden layer, then a last one that starts at zero: a read-out of its own.

    Networks call it `second`, beside the read-out of a network with one output: the
    weights of that one fit by name, and the head trains alone by `network.second*`.

    Reference: Bao et al. 2022 (the two stages of SN- and NPR-DPM), arXiv:2206.07309.
    """
    return nn.Sequential(xavier(first), nn.SiLU(), zeroed(last))


def dropout(rate: float) -> nn.Module:
    """Dropout, or nothing at all where the rate is 0."""
    return nn.Dropout(rate) if rate else nn.Identity()


def groups(channels: int) -> int:
    """At most 32 groups of at least 4 channels, as in DDPM."""
    most = max(1, min(32, channels // 4))
    return next(count for count in range(most, 0, -1) if channels % count == 0)


def group_norm(channels: int) -> nn.GroupNorm:
    """Group normalisation as in DDPM."""
    return nn.GroupNorm(groups(channels), channels, eps=1e-6)


def norm_silu(channels: int) -> NormSilu:
    """The same with silu after it."""
    return NormSilu(groups(channels), channels, eps=1e-6)


def sinusoids(x: Tensor, width: int) -> Tensor:
    """[sin(w_k x), cos(w_k x)], w_k = 10000^(-k / (width/2 - 1)): (B,) to (B, width).

    At least float32 whatever the precision of `x`.

    Reference: Vaswani et al. 2017, section 3.5, arXiv:1706.03762, as DDPM scales it.
    """
    half = width // 2
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    index = torch.arange(half, dtype=x.dtype, device=x.device)
    angle = x[:, None] * torch.exp(index * (-math.log(10_000) / max(half - 1, 1)))
    return torch.cat([angle.sin(), angle.cos()], dim=1)


class Embedding(nn.Module):
    """One vector per sample from all that conditions the network: (B, width).

    e = SiLU(MLP(sinusoids(1000 level)) + table[label] + W extra)

    The last row of the table means no label; no `extra` is the zero vector.

    Reference: Ho et al. 2020, appendix B, arXiv:2006.11239.

    Args:
        state: Says how many classes there are and how long `extra` is.
        waves: Number of sinusoids.
        width: Length of the vector.
    """

    def __init__(self, state: Spec, waves: int, width: int) -> None:
        super().__init__()
        self.waves, self.classes = waves, state.classes
        self.level = nn.Sequential(
            xavier(nn.Linear(waves, width)), nn.SiLU(), xavier(nn.Linear(width, width))
        )
        self.label = nn.Embedding(state.classes + 1, width) if state.classes else None
        extra = state.extra
        self.extra = xavier(nn.Linear(extra, width, bias=False)) if extra else None

    def forward(
        self, level: Tensor, label: Tensor | None, extra: Tensor | None
    ) -> Tensor:
        """The vector; conditions that the state does not have are ignored."""
        waves = sinusoids(1000 * level, self.waves)
        total: Tensor = self.level(waves.to(level.dtype))
        if self.label is not None:
            if label is None:
                label = torch.full_like(level, self.classes, dtype=torch.long)
            total = total + self.label(torch.where(label < 0, self.classes, label))
        if self.extra is not None and extra is not None:
            total = total + self.extra(extra)
        return F.silu(total)


class Attention(nn.Module):
    """Self-attention softmax(Q K^T / sqrt(d)) V over tokens (B, N, width).

    Reference: Vaswani et al. 2017, equation 1, arXiv:1706.03762.
    """

    def __init__(self, width: int, heads: int, last: nn.Linear) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = xavier(nn.Linear(width, 3 * width))
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, N, width) to (B, N, width)."""
        return self.attend(self.qkv(x))

    def attend(self, qkv: Tensor) -> Tensor:
        """The same from queries, keys and values, (B, N, 3 width)."""
        qkv = qkv.reshape(*qkv.shape[:2], 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind()  # each (B, heads, N, d)
        y = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.last(y.transpose(1, 2).flatten(2))
        return out


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x (1 + scale) + shift, for tokens (B, N, C) and one (B, 1, C) per sample."""
    return x * (1 + scale) + shift


def modulated(
    layer: nn.Module, norm: nn.Module, x: Tensor, shift: Tensor, scale: Tensor
) -> Tensor:
    """`layer` of the modulated norm of x."""
    return layer(modulate(norm(x), shift, scale))  # type: ignore[no-any-return]


def run(function: Callable[..., Tensor], recompute: bool, *inputs: Any) -> Tensor:
    """`function(*inputs)`, whose activations are kept or recomputed by `backward`.

    Recomputation ends with the last tensor that is needed: a product at the end of
    `function` is not computed again, only its input is.

    Reference: Chen et al. 2016, arXiv:1604.06174.
    """
    if recompute and torch.is_grad_enabled():
        out: Tensor = checkpoint(function, *inputs, use_reentrant=False)
        return out
    return function(*inputs)


def run_block(block: nn.Module, mode: Recompute, *inputs: Tensor | None) -> Tensor:
    """A block whose last argument says what of itself it recomputes."""
    return run(block, mode == "blocks", *inputs, mode)
