"""From pinned memory to the device, beside what it computes."""

from __future__ import annotations

import torch
from torch import Tensor


class Transfer:
    """Copies on a stream of their own, so that none waits for the step before.

    The host is ahead of the device: a copy is asked for while that computes.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        cuda = device.type == "cuda"
        self.stream = torch.cuda.Stream(device) if cuda else None  # type: ignore[no-untyped-call]

    def __call__(self, *tensors: Tensor) -> list[Tensor]:
        """The same tensors on the device, ready for what is asked of it next."""
        if self.stream is None:
            return [tensor.to(self.device) for tensor in tensors]
        with torch.cuda.stream(self.stream):
            moved = [tensor.to(self.device, non_blocking=True) for tensor in tensors]
        computing = torch.cuda.current_stream(self.device)
        computing.wait_stream(self.stream)
        for tensor in moved:  # its memory is not given away before that stream is done
            tensor.record_stream(computing)
        return moved
