"""A residual perceptron for data of low dimension."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion_cli.core import Spec
from diffusion_cli.networks import Network, Recompute, networks
from diffusion_cli.networks.blocks import (
    Embedding,
    doubled,
    dropout,
    run,
    run_block,
    second_head,
    xavier,
    zeroed,
)
from diffusion_cli.settings import require

WAVES = 64  # sinusoids of the level


class Block(nn.Module):
    """Pre-norm residual block; the embedding is added between its two layers."""

    def __init__(self, width: int, rate: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.first = xavier(nn.Linear(width, width))
        self.shift = xavier(nn.Linear(width, width))
        self.dropout = dropout(rate)
        self.last = zeroed(nn.Linear(width, width))

    def forward(self, x: Tensor, embedding: Tensor, mode: Recompute) -> Tensor:
        norms = mode == "norms"
        y = run(lambda x: self.first(self.norm(x)), norms, x) + self.shift(embedding)
        return x + run(lambda y: self.last(self.dropout(F.silu(y))), norms, y)


@networks("mlp")
class MLP(Network):
    """A residual perceptron on the flattened state and its Fourier features.

    x -> [x, sin(2^k x), cos(2^k x)], k = 0 .. fourier - 1, then residual blocks.

    It has no attention, so recomputing `attention` changes nothing.

    Reference: Tancik et al. 2020, section 6.1, arXiv:2006.10739.

    Args:
        width: Width of every layer.
        depth: Number of residual blocks.
        fourier: Octaves of Fourier features of the state; 0 for the state alone.
        dropout: Dropout rate inside the blocks.
    """

    def __init__(
        self,
        state: Spec,
        out: tuple[int, ...],
        width: int = 256,
        depth: int = 4,
        fourier: int = 4,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        require(state.kind == "continuous", "state", state.kind, "continuous")
        require(width >= 1, "width", width, ">= 1")
        require(depth >= 1, "depth", depth, ">= 1")
        require(fourier >= 0, "fourier", fourier, ">= 0")
        require(0 <= dropout < 1, "dropout", dropout, "in [0, 1)")
        self.out, self.fourier = out, fourier
        self.embedding = Embedding(state, WAVES, width)
        self.first = xavier(nn.Linear(state.numel * (1 + 2 * fourier), width))
        self.blocks = nn.ModuleList(Block(width, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        two = doubled(out, state)
        values = state.numel if two else math.prod(out)
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
        x = self.first(self._features(x.flatten(1)))
        for block in self.blocks:
            x = run_block(block, self.recompute, x, embedding)
        x = self.norm(x)
        y: Tensor = self.last(x)
        if self.second is not None:
            y = torch.cat([y, self.second(x)], dim=1)
        return y.reshape(-1, *self.out)

    def _features(self, x: Tensor) -> Tensor:
        octaves = [2**k * x for k in range(self.fourier)]
        waves = [wave for angle in octaves for wave in (angle.sin(), angle.cos())]
        return torch.cat([x, *waves], dim=1)  # (B, D (1 + 2 fourier))
