"""Exponential moving averages of weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class Average:
    """An exponential moving average with a half-life in steps.

    a <- a + (1 - 2^(-1/h)) (w - a),   h = min(half_life, ramp * steps done)

    The ramp lets an early average forget the initial weights: at step 0 it is a copy.

    Reference: Karras et al. 2022, arXiv:2206.00364, its training code (ramp 0.05).

    Args:
        named: The weights to follow, by name.
        half_life: Steps after which a weight counts half.
        ramp: Largest fraction of the steps done so far; None averages from the start.
    """

    def __init__(
        self, named: Mapping[str, Tensor], half_life: float, ramp: float | None
    ) -> None:
        self.half_life, self.ramp = half_life, ramp
        self.weights = {name: w.detach() for name, w in named.items()}
        self.tensors = {name: w.clone() for name, w in self.weights.items()}

    @property
    def name(self) -> str:
        """`ema-7000`, as in the checkpoint."""
        return f"ema-{self.half_life:.10g}"

    def gain(self, step: int) -> float:
        """How far the average moves toward the weights after `step` earlier steps."""
        half_life = self.half_life
        if self.ramp is not None:
            half_life = min(half_life, self.ramp * step)
        return 1 - 0.5 ** (1 / half_life) if half_life > 1e-3 else 1.0

    def update(self, step: int) -> None:
        """Take in the weights after one more step; `step` counts the earlier ones."""
        averages, weights = list(self.tensors.values()), list(self.weights.values())
        torch._foreach_lerp_(averages, weights, self.gain(step))
