"""Memory of a process and of a forward pass; imports neither dcli nor a peer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor

KEPT, MOST = "MB kept of an image", "MB at most"  # as tables call them


class Peak:
    """Megabytes that this process needed at most, beside those it had at first."""

    def __init__(self) -> None:
        self.before = _status("VmRSS")

    def megabytes(self) -> float:
        return max(0.0, _status("VmHWM") - self.before)


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{name}:"))
    return int(line.split()[1]) / 2**10


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
