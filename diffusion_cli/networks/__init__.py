"""Networks: plain functions of (state, level, conditions). They know nothing else."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

from torch import Tensor, nn

from diffusion_cli.registry import Registry

Recompute = Literal["none", "norms", "blocks", "attention"]


class Network(nn.Module, ABC):
    """A plain function of (state, level, conditions).

    Constructed as `Net(state: Spec, out: tuple[int, ...], **own)`; `out` is the shape
    to return per sample: (C, H, W), (2C, H, W) with a variance, (L, V) for tokens, (K,)
    for a classifier. Embeddings of `level` are sinusoids of 1000 level, DDPM's step
    index.

    `recompute` is gradient checkpointing, set by the trainer. Computed again are what
    lies between the products of a block (`norms`, with activations and dropout), the
    attention layers (`attention`), or whole blocks (`blocks`).
    """

    recompute: Recompute = "none"

    @abstractmethod
    def forward(
        self,
        x: Tensor,
        level: Tensor,
        label: Tensor | None = None,
        extra: Tensor | None = None,
    ) -> Tensor:
        """Map x of shape (B, *state.shape) to (B, *out).

        `level` is (B,), of order one; `label` is (B,) with -1 for none; `extra` is
        (B, k), any continuous condition.
        """


networks: Registry[Network] = Registry(
    "network", Network, __name__, given=("state", "out")
)
