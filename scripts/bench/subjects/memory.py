"""What a forward pass keeps for its backward pass; imports neither dcli nor a peer."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


def kept(loss: Callable[[], Tensor], weights: Iterable[Tensor]) -> float:
    """Megabytes of all that is saved for the gradient, weights left out."""
    own = {weight.untyped_storage().data_ptr() for weight in weights}
    found: dict[int, Tensor] = {}  # one for each storage; held, so that none is reused

    def note(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in own:
            found[place] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss()
    return sum(t.untyped_storage().nbytes() for t in found.values()) / 2**20
