"""The U-Net of DDPM."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from diffusion_cli.core import Spec
from diffusion_cli.networks import Network, networks
from diffusion_cli.networks.blocks import (
    Embedding,
    doubled,
    norm_silu,
    run_block,
    second_head,
    xavier,
    zeroed,
)
from diffusion_cli.networks.residual import Block
from diffusion_cli.settings import require


@networks("unet")
class UNet(Network):
    """The U-Net of DDPM: residual blocks, attention at chosen sizes, joined skips.

    Its defaults are the published CIFAR-10 network, 35,746,307 parameters. An `out` of
    (K,) averages the last features over space and maps them to K numbers.

    Reference: Ho et al. 2020, appendix B, arXiv:2006.11239.

    Args:
        channels: Width of the first level.
        multipliers: Width of every level, in units of `channels`; each level halves the
            image, so its sides must be divisible by 2^(levels - 1).
        blocks: Residual blocks per level on the way down; one more on the way up.
        attention: Sizes of the image, in pixels, at which blocks attend; the middle
            always does.
        heads: Attention heads.
        dropout: Dropout rate inside the blocks.
    """

    def __init__(
        self,
        state: Spec,
        out: tuple[int, ...],
        channels: int = 128,
        multipliers: tuple[int, ...] = (1, 2, 2, 2),
        blocks: int = 2,
        attention: tuple[int, ...] = (16,),
        heads: int = 1,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        _check(state, out, multipliers)
        require(channels >= 2, "channels", channels, ">= 2")
        require(channels % 2 == 0, "channels", channels, "even")
        require(blocks >= 1, "blocks", blocks, ">= 1")
        widths = [channels * multiplier for multiplier in multipliers]
        fits = heads >= 1 and all(width % heads == 0 for width in widths)
        require(fits, "heads", heads, f"a divisor of the widths {widths}")
        require(0 <= dropout < 1, "dropout", dropout, "in [0, 1)")
        sizes = [min(state.shape[1:]) >> level for level in range(len(widths))]

        def block(inner: int, outer: int, attends: bool) -> Block:
            return Block(inner, outer, 4 * channels, heads * attends, dropout)

        self.embedding = Embedding(state, channels, 4 * channels)
        self.entries, self.down = nn.ModuleList(), nn.ModuleList()
        self.up, self.exits = nn.ModuleList(), nn.ModuleList()
        current, skips = state.shape[0], list[int]()
        for level, (width, size) in enumerate(zip(widths, sizes, strict=True)):
            into = current if level else channels
            self.entries.append(
                xavier(nn.Conv2d(current, into, 3, 2 if level else 1, padding=1))
            )
            inputs = [into] + [width] * (blocks - 1)
            self.down.append(
                nn.ModuleList(block(i, width, size in attention) for i in inputs)
            )
            current, skips = width, [*skips, into, *[width] * blocks]
        self.middle = nn.ModuleList(
            [block(current, current, True), block(current, current, False)]
        )
        for width, size in zip(reversed(widths), reversed(sizes), strict=True):
            layers = nn.ModuleList()
            for _ in range(blocks + 1):
                layers.append(block(current + skips.pop(), width, size in attention))
                current = width
            self.up.append(layers)
        for width in reversed(widths[1:]):
            grow = xavier(nn.Conv2d(width, width, 3, padding=1))
            self.exits.append(nn.Sequential(nn.Upsample(scale_factor=2), grow))
        two = doubled(out, state)
        last = _head(current, state.shape if two else out)
        # Names of parameters count layers, and silu was one of its own.
        self.exits.append(nn.Sequential(norm_silu(current), nn.Identity(), last))
        self.second = None
        if two:
            hidden = nn.Conv2d(current, current, 3, padding=1)
            ends = nn.Conv2d(current, state.shape[0], 3, padding=1)
            head = second_head(hidden, ends)
            self.second = nn.Sequential(norm_silu(current), nn.Identity(), head)

    def forward(
        self,
        x: Tensor,
        level: Tensor,
        label: Tensor | None = None,
        extra: Tensor | None = None,
    ) -> Tensor:
        embedding = self.embedding(level, label, extra)
        skips: list[Tensor] = []
        for entry, blocks in zip(self.entries, self.down, strict=True):
            x = entry(x)
            skips.append(x)
            for block in blocks:  # type: ignore[attr-defined]  # a list of modules
                x = run_block(block, self.recompute, x, None, embedding)
                skips.append(x)
        for block in self.middle:
            x = run_block(block, self.recompute, x, None, embedding)
        features = x
        for blocks, leave in zip(self.up, self.exits, strict=True):
            for block in blocks:  # type: ignore[attr-defined]
                x = run_block(block, self.recompute, x, skips.pop(), embedding)
            features, x = x, leave(x)
        if self.second is not None:
            x = torch.cat([x, self.second(features)], dim=1)
        return x


def _head(channels: int, out: tuple[int, ...]) -> nn.Module:
    if len(out) == 1:
        last = zeroed(nn.Linear(channels, out[0]))
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), last)
    return zeroed(nn.Conv2d(channels, out[0], 3, padding=1))


def _check(state: Spec, out: tuple[int, ...], multipliers: tuple[int, ...]) -> None:
    image = len(state.shape) == 3 and state.kind == "continuous"
    require(image, "state", state.shape, "an image (C, H, W); try `network=mlp`")
    sides = state.shape[1:]
    same = len(out) == 1 or (len(out) == 3 and out[1:] == sides)
    require(same, "out", out, f"(channels, {sides[0]}, {sides[1]}) or (K,)")
    positive = bool(multipliers) and min(multipliers) >= 1
    require(positive, "multipliers", multipliers, "one number >= 1 for each level")
    levels, common = len(multipliers), math.gcd(*sides)
    most = (common & -common).bit_length()  # one more than the times 2 divides it
    require(
        levels <= most,
        "multipliers",
        multipliers,
        f"at most {most} levels for images of {sides[0]}x{sides[1]} "
        f"({levels} levels need sides divisible by {2 ** (levels - 1)})",
    )
