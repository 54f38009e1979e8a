"""What the optimisers written here share: one rule per tensor, and when not to move."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

Moves = Iterable[tuple[Tensor, Tensor]]  # (what to overwrite, its new value)


class Tensorwise(Optimizer, ABC):
    """An optimiser that treats every tensor by itself.

    Like torch's fused optimisers it obeys `found_inf`: while that is 1 nothing moves,
    and nobody waits for the device.
    """

    _step_supports_amp_scaling = True
    found_inf: Tensor | None = None
    grad_scale: Tensor | None = None

    @abstractmethod
    def first(self, p: Tensor) -> dict[str, Tensor]:
        """The state of a tensor before its first step."""

    @abstractmethod
    def rule(
        self, p: Tensor, g: Tensor, state: dict[str, Tensor], group: dict[str, Any]
    ) -> Moves:
        """The new values of the tensor and its state, given the gradient `g`."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step for every tensor that has a gradient."""
        loss = closure() if closure else None
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._move(p, group)
        return loss

    def _move(self, p: Tensor, group: dict[str, Any]) -> None:
        assert p.grad is not None and self.grad_scale is None
        if not self.state[p]:
            self.state[p] = self.first(p)
        skip = None if self.found_inf is None else self.found_inf > 0
        for old, new in list(self.rule(p, p.grad, self.state[p], group)):
            old.copy_(new if skip is None else torch.where(skip, old, new))


def decay_groups(module: nn.Module) -> list[dict[str, Any]]:
    """Two parameter groups: the second, norms, biases and embeddings, never decays."""
    tables = {
        part.weight for part in module.modules() if isinstance(part, nn.Embedding)
    }
    trained = [p for p in module.parameters() if p.requires_grad]
    spared = [p for p in trained if p.ndim < 2 or p in tables]
    decayed = [p for p in trained if not (p.ndim < 2 or p in tables)]
    groups: list[dict[str, Any]] = [{"params": decayed}]
    groups.append({"params": spared, "weight_decay": 0.0})
    return [group for group in groups if group["params"]]
