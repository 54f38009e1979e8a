"""Diffusion transformers."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from diffusion_cli.core import Spec
from diffusion_cli.networks import Network, Recompute, networks
from diffusion_cli.networks.blocks import (
    Attention,
    Embedding,
    doubled,
    dropout,
    modulate,
    modulated,
    run,
    run_block,
    second_head,
    sinusoids,
    xavier,
    zeroed,
)
from diffusion_cli.settings import require

WAVES = 256  # sinusoids of the level, as published


class Block(nn.Module):
    """A transformer block whose norms are modulated and whose branches start closed.

    Reference: Peebles and Xie 2023, figure 3 (adaLN-Zero), arXiv:2212.09748.
    """

    def __init__(self, width: int, heads: int, ratio: float, rate: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.attention = Attention(width, heads, xavier(nn.Linear(width, width)))
        hidden = int(width * ratio)
        self.mlp = nn.Sequential(
            xavier(nn.Linear(width, hidden)),
            nn.GELU(approximate="tanh"),
            dropout(rate),
            xavier(nn.Linear(hidden, width)),
        )
        self.modulation = zeroed(nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, embedding: Tensor, mode: Recompute) -> Tensor:
        attend, think = self.modulation(embedding).chunk(2, dim=1)
        shift, scale, gate = attend[:, None].chunk(3, dim=2)  # each (B, 1, width)
        y = run(self._attend, mode == "attention", x, shift, scale, mode)
        x = x + gate * y
        shift, scale, gate = think[:, None].chunk(3, dim=2)
        enter = partial(modulated, self.mlp[0], self.norm)
        y = run(enter, mode == "norms", x, shift, scale)
        out: Tensor = x + gate * run(self.mlp[1:], mode == "norms", y)
        return out

    def _attend(
        self, x: Tensor, shift: Tensor, scale: Tensor, mode: Recompute
    ) -> Tensor:
        enter = partial(modulated, self.attention.qkv, self.norm)
        qkv = run(enter, mode == "norms", x, shift, scale)
        return self.attention.attend(qkv)


@networks("dit")
class DiT(Network):
    """A transformer over patches of the image, conditioned by adaLN-Zero.

    An `out` of (K,) averages the last tokens and maps them to K numbers.

    Reference: Peebles and Xie 2023, section 3.2, arXiv:2212.09748.

    Args:
        patch: Side of a patch in pixels; divides both sides of the image.
        depth: Number of blocks.
        width: Width of a token, a multiple of 4 and of `heads`.
        heads: Attention heads.
        ratio: Width of the perceptron in a block, in units of `width`.
        dropout: Dropout rate inside the perceptrons.
    """

    def __init__(
        self,
        state: Spec,
        out: tuple[int, ...],
        patch: int = 2,
        depth: int = 12,
        width: int = 384,
        heads: int = 6,
        ratio: float = 4.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        image = len(state.shape) == 3 and state.kind == "continuous"
        require(image, "state", state.shape, "an image (C, H, W); try `network=mlp`")
        channels, *sides = state.shape
        divides = patch >= 1 and not any(side % patch for side in sides)
        require(divides, "patch", patch, f"a divisor of both sides {sides}")
        same = len(out) == 1 or (len(out) == 3 and list(out[1:]) == sides)
        require(same, "out", out, f"(channels, {sides[0]}, {sides[1]}) or (K,)")
        require(depth >= 1, "depth", depth, ">= 1")
        require(width >= 4 and width % 4 == 0, "width", width, "a multiple of 4")
        fits = heads >= 1 and width % heads == 0
        require(fits, "heads", heads, f"a divisor of width={width}")
        require(ratio * width >= 1, "ratio", ratio, "> 0")
        require(0 <= dropout < 1, "dropout", dropout, "in [0, 1)")
        self.out, self.patch = out, patch
        self.rows, columns = sides[0] // patch, sides[1] // patch
        self.embedding = Embedding(state, WAVES, width)
        self.first = xavier(nn.Linear(channels * patch**2, width))
        self.position: Tensor
        self.register_buffer("position", _positions(self.rows, columns, width))
        self.blocks = nn.ModuleList(
            Block(width, heads, ratio, dropout) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.modulation = zeroed(nn.Linear(width, 2 * width))
        two = doubled(out, state)
        values = out[0] if len(out) == 1 else out[0] * patch**2 // (1 + two)
        self.last = zeroed(nn.Linear(width, values))
        hidden = nn.Linear(width, width)
        self.second = second_head(hidden, nn.Linear(width, values)) if two else None

    def forward(
        self,
        x: Tensor,
        level: Tensor,
        label: Tensor | None = None,
        extra: Tensor | None = None,
    ) -> Tensor:
        embedding = self.embedding(level, label, extra)
        x = self.first(self._patches(x)) + self.position
        for block in self.blocks:
            x = run_block(block, self.recompute, x, embedding)
        shift, scale = self.modulation(embedding)[:, None].chunk(2, dim=2)
        x = modulate(self.norm(x), shift, scale)
        if len(self.out) == 1:
            x = x.mean(1)
        y: Tensor = self.last(x)
        if len(self.out) == 1:
            return y
        if self.second is not None:
            return torch.cat([self._image(y), self._image(self.second(x))], dim=1)
        return self._image(y)

    def _patches(self, x: Tensor) -> Tensor:
        batch, channels, p = *x.shape[:2], self.patch
        x = x.reshape(batch, channels, self.rows, p, -1, p)
        return x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # (B, N, C p^2)

    def _image(self, y: Tensor) -> Tensor:
        p = self.patch
        y = y.reshape(len(y), self.rows, y.shape[1] // self.rows, -1, p, p)
        y = y.permute(0, 3, 1, 4, 2, 5)  # (B, C, rows, p, columns, p)
        return y.flatten(4).flatten(2, 3)


def _positions(rows: int, columns: int, width: int) -> Tensor:
    """Sinusoids of the row and of the column, half the width each: (1, N, width)."""
    row = sinusoids(torch.arange(rows), width // 2)[:, None].expand(-1, columns, -1)
    column = sinusoids(torch.arange(columns), width // 2).expand(rows, -1, -1)
    return torch.cat([row, column], dim=2).flatten(0, 1)[None]
