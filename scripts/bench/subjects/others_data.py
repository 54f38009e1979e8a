"""torchvision's way from CIFAR-10 to batches."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import CIFAR10

Once = Callable[[], dict[str, float]]


def torchvision(
    workers: int,
    count: int = 50_000,
    batch: int = 128,
    steps: int = 40,
    device: str = "cpu",
) -> Once:
    """Seconds for an image, with the usual mirror, conversion and normalisation.

    For a GPU batches pass through pinned memory, as its documentation tells.
    """
    rng = np.random.default_rng(0)
    data = CIFAR10.__new__(CIFAR10)  # its own indexing, without its download
    data.data = rng.integers(0, 256, (count, 32, 32, 3), np.uint8)
    data.targets = rng.integers(0, 10, count).tolist()
    data.target_transform = None
    data.transform = transforms.Compose(
        [
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize([0.5], [0.5]),
        ]
    )
    cuda = torch.device(device).type == "cuda"
    how = {"num_workers": workers, "pin_memory": cuda}
    how |= {"persistent_workers": True} if workers else {}
    loader = DataLoader(data, batch, shuffle=True, **how)
    stream = iter(loader)

    def once() -> dict[str, float]:
        nonlocal stream
        begun = time.perf_counter()
        for _ in range(steps):
            found = next(stream, None)
            if found is None:
                stream = iter(loader)
            elif cuda:
                for part in found:
                    part.to(device, non_blocking=True)
        if cuda:
            torch.cuda.synchronize()
        return {"seconds": (time.perf_counter() - begun) / (steps * batch)}

    return once
