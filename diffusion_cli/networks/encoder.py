"""The downward half of a U-Net, for classifiers."""

from __future__ import annotations

from torch import Tensor, nn

from diffusion_cli.core import Spec
from diffusion_cli.networks import Network, networks
from diffusion_cli.networks.blocks import (
    Embedding,
    norm_silu,
    run,
    run_block,
    xavier,
    zeroed,
)
from diffusion_cli.networks.residual import Block
from diffusion_cli.settings import require


@networks("encoder")
class Encoder(Network):
    """Residual blocks at falling sizes, the mean over pixels, one linear map.

    The downward half of the U-Net for outputs of the shape (K,). What the last map
    reads, channels times the last multiplier, are features of the image.

    Reference: Dhariwal and Nichol 2021, section 4 (without attention),
        arXiv:2105.05233.

    Args:
        channels: Width at full size.
        multipliers: Widths by size, in units of `channels`; each size halves the last.
        blocks: Residual blocks for each size.
        dropout: Dropout rate inside the blocks.
    """

    def __init__(
        self,
        state: Spec,
        out: tuple[int, ...],
        channels: int = 16,
        multipliers: tuple[int, ...] = (1, 2, 4, 8),
        blocks: int = 1,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        image = len(state.shape) == 3 and state.kind == "continuous"
        require(image, "state", state.shape, "an image (C, H, W); try `network=mlp`")
        require(len(out) == 1, "out", out, "(K,): it is for parametrisation=classes")
        require(channels >= 2, "channels", channels, ">= 2")
        require(channels % 2 == 0, "channels", channels, "even")
        positive = bool(multipliers) and min(multipliers) >= 1
        require(positive, "multipliers", multipliers, "one number >= 1 for each size")
        require(blocks >= 1, "blocks", blocks, ">= 1")
        require(0 <= dropout < 1, "dropout", dropout, "in [0, 1)")
        self.embedding = Embedding(state, channels, 4 * channels)
        self.entries, self.down = nn.ModuleList(), nn.ModuleList()
        current = state.shape[0]
        for level, multiplier in enumerate(multipliers):
            width, into = channels * multiplier, current if level else channels
            stride = 2 if level else 1
            self.entries.append(xavier(nn.Conv2d(current, into, 3, stride, padding=1)))
            inputs = [into] + [width] * (blocks - 1)
            self.down.append(
                nn.ModuleList(Block(i, width, 4 * channels, 0, dropout) for i in inputs)
            )
            current = width
        self.exit = nn.Sequential(
            # Names of parameters count layers, and silu was one of its own.
            norm_silu(current),
            nn.Identity(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.last = zeroed(nn.Linear(current, out[0]))

    def forward(
        self,
        x: Tensor,
        level: Tensor,
        label: Tensor | None = None,
        extra: Tensor | None = None,
    ) -> Tensor:
        embedding = self.embedding(level, label, extra)
        for entry, blocks in zip(self.entries, self.down, strict=True):
            x = entry(x)
            for block in blocks:  # type: ignore[attr-defined]  # a list of modules
                x = run_block(block, self.recompute, x, None, embedding)
        x = run(self.exit, self.recompute == "norms", x)
        return self.last(x)  # type: ignore[no-any-return]
