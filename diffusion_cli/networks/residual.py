"""Residual convolutions of the U-Net and its encoder. Registers nothing."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diffusion_cli.networks import Recompute
from diffusion_cli.networks.blocks import (
    Attention,
    dropout,
    group_norm,
    norm_silu,
    run,
    xavier,
    zeroed,
)
from diffusion_cli.networks.recomputed import convolved


class PixelAttention(nn.Module):
    """Attention over the pixels of (B, C, H, W), added to its input."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.attention = Attention(
            channels, heads, zeroed(nn.Linear(channels, channels))
        )

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # (B, H W, C)
        y: Tensor = self.attention(tokens)
        return x + y.transpose(1, 2).reshape(x.shape)


class Block(nn.Module):
    """Residual block: two convolutions with the embedding between, then attention.

    Reference: Ho et al. 2020, appendix B, arXiv:2006.11239.

    Args:
        heads: Heads of the attention; 0 means none.
    """

    def __init__(
        self, inner: int, outer: int, embedding: int, heads: int, rate: float
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = norm_silu(inner), norm_silu(outer)
        self.conv1 = xavier(nn.Conv2d(inner, outer, 3, padding=1))
        self.shift = xavier(nn.Linear(embedding, outer))
        self.dropout = dropout(rate)
        self.conv2 = zeroed(nn.Conv2d(outer, outer, 3, padding=1))
        same = inner == outer
        self.shortcut = nn.Identity() if same else xavier(nn.Conv2d(inner, outer, 1))
        self.attention = PixelAttention(outer, heads) if heads else None

    def forward(
        self, x: Tensor, skip: Tensor | None, embedding: Tensor, mode: Recompute
    ) -> Tensor:
        # Joined here, so that recomputation remembers the two and not the pair.
        x = x if skip is None else torch.cat([x, skip], dim=1)
        y = convolved(self.norm1, nn.Identity(), self.conv1, x, mode)
        y = y + self.shift(embedding)[:, :, None, None]
        y = convolved(self.norm2, self.dropout, self.conv2, y, mode)
        out: Tensor = self.shortcut(x) + y
        if self.attention is None:
            return out
        return run(self.attention, mode == "attention", out)
