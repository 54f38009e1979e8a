"""A transformer over tokens."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion_cli.core import Spec
from diffusion_cli.networks import Network, Recompute, networks
from diffusion_cli.networks.blocks import (
    Embedding,
    dropout,
    modulate,
    modulated,
    run,
    run_block,
    xavier,
    zeroed,
)
from diffusion_cli.settings import require

WAVES = 256  # sinusoids of the level, as in DiT
BASE = 10_000.0  # of the angles


class Attention(nn.Module):
    """Self-attention whose queries and keys are turned by their position.

    Reference: Su et al. 2021, eq. 34, arXiv:2104.09864.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = xavier(nn.Linear(width, 3 * width))
        self.last = xavier(nn.Linear(width, width))

    def forward(self, qkv: Tensor, turn: Tensor | None) -> Tensor:
        """Map what `qkv` made, (B, L, 3 width), to (B, L, width).

        `turn` holds cosines and sines.
        """
        qkv = qkv.reshape(*qkv.shape[:2], 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind()  # each (B, heads, L, d)
        if turn is not None:
            q, k = turned(q, turn), turned(k, turn)
        y = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.last(y.transpose(1, 2).flatten(2))
        return out


def turned(x: Tensor, turn: Tensor) -> Tensor:
    """Pairs (x_i, x_{i + d/2}) rotated by the angles of their position."""
    cos, sin = turn.to(x.dtype)  # each (L, d / 2)
    left, right = x.chunk(2, dim=-1)
    return torch.cat((left * cos - right * sin, left * sin + right * cos), dim=-1)


class Block(nn.Module):
    """A transformer block with adaLN-Zero.

    Reference: Peebles and Xie 2023, figure 3, arXiv:2212.09748.
    """

    def __init__(self, width: int, heads: int, ratio: float, rate: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.attention = Attention(width, heads)
        hidden = int(width * ratio)
        self.mlp = nn.Sequential(
            xavier(nn.Linear(width, hidden)),
            nn.GELU(approximate="tanh"),
            dropout(rate),
            xavier(nn.Linear(hidden, width)),
        )
        self.modulation = zeroed(nn.Linear(width, 6 * width))

    def forward(
        self, x: Tensor, embedding: Tensor, turn: Tensor | None, mode: Recompute
    ) -> Tensor:
        parts = self.modulation(embedding)[:, None].chunk(6, dim=2)
        shift, scale, gate = parts[:3]  # each (B, 1, width)
        y = run(self._attend, mode == "attention", x, shift, scale, turn, mode)
        x = x + gate * y
        shift, scale, gate = parts[3:]
        enter = partial(modulated, self.mlp[0], self.norm)
        y = run(enter, mode == "norms", x, shift, scale)
        out: Tensor = x + gate * run(self.mlp[1:], mode == "norms", y)
        return out

    def _attend(
        self,
        x: Tensor,
        shift: Tensor,
        scale: Tensor,
        turn: Tensor | None,
        mode: Recompute,
    ) -> Tensor:
        enter = partial(modulated, self.attention.qkv, self.norm)
        qkv = run(enter, mode == "norms", x, shift, scale)
        return self.attention(qkv, turn)  # type: ignore[no-any-return]


@networks("token_transformer")
class TokenTransformer(Network):
    """A bidirectional transformer over tokens, conditioned by adaLN-Zero.

    A parametrisation that does not show the time gives it the same level always. An
    `out` of (K,) averages the last tokens and maps them to K numbers.

    Reference: Peebles and Xie 2023, section 3.2, arXiv:2212.09748; Lou et al. 2023,
        appendix C.2 (for tokens, with rotary positions), arXiv:2310.16834.

    Args:
        depth: Number of blocks.
        width: Width of a token, an even multiple of `heads`.
        heads: Attention heads.
        ratio: Width of the perceptron in a block, in units of `width`.
        positions: Rotated queries and keys, or a learned vector per position.
        dropout: Dropout rate inside the perceptrons.
    """

    def __init__(
        self,
        state: Spec,
        out: tuple[int, ...],
        depth: int = 12,
        width: int = 768,
        heads: int = 12,
        ratio: float = 4.0,
        positions: Literal["rotary", "learned"] = "rotary",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        tokens = state.kind == "tokens" and len(state.shape) == 1
        require(tokens, "state", state.shape, "tokens (L,); try `network=mlp`")
        (length,) = state.shape
        same = len(out) == 1 or (len(out) == 2 and out[0] == length)
        require(same, "out", out, f"({length}, V) or (K,)")
        require(depth >= 1, "depth", depth, ">= 1")
        fits = heads >= 1 and width >= 4 and width % (2 * heads) == 0
        require(fits, "heads", heads, f"with 2 heads a divisor of width={width}")
        require(ratio * width >= 1, "ratio", ratio, "> 0")
        require(0 <= dropout < 1, "dropout", dropout, "in [0, 1)")
        self.out = out
        self.embedding = Embedding(state, WAVES, width)
        self.first = nn.Embedding(state.vocab, width)
        nn.init.normal_(self.first.weight, std=0.02 * width**0.5)
        rotary = positions == "rotary"
        self.turn: Tensor | None
        self.register_buffer("turn", angles(length, width // heads) if rotary else None)
        self.position = None if rotary else nn.Parameter(torch.empty(length, width))
        if self.position is not None:
            nn.init.normal_(self.position, std=0.02)
        self.blocks = nn.ModuleList(
            Block(width, heads, ratio, dropout) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.modulation = zeroed(nn.Linear(width, 2 * width))
        self.last = zeroed(nn.Linear(width, out[-1]))

    def forward(
        self,
        x: Tensor,
        level: Tensor,
        label: Tensor | None = None,
        extra: Tensor | None = None,
    ) -> Tensor:
        embedding = self.embedding(level, label, extra)
        y: Tensor = self.first(x)
        if self.position is not None:
            y = y + self.position
        for block in self.blocks:
            y = run_block(block, self.recompute, y, embedding, self.turn)
        shift, scale = self.modulation(embedding)[:, None].chunk(2, dim=2)
        y = modulate(self.norm(y), shift, scale)
        if len(self.out) == 1:
            y = y.mean(1)
        return self.last(y)  # type: ignore[no-any-return]


def angles(length: int, width: int) -> Tensor:
    """Cosines and sines of position times BASE^(-2 i / width): (2, L, width / 2)."""
    rate = BASE ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angle = torch.arange(length, dtype=torch.float64)[:, None] * rate
    return torch.stack((angle.cos(), angle.sin())).float()
