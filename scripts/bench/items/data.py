"""From 50,000 images to batches on the device."""

from __future__ import annotations

import os
from collections.abc import Iterator
from statistics import median

from chip import Bench, Row
from subjects.others_data import torchvision
from subjects.own_data import resident

BATCH = 512


def measure(bench: Bench) -> Iterator[Row]:
    """dcli's images lie on the device as uint8; a DataLoader brings them there."""
    size = {"count": 2_000 if bench.small else 50_000, "batch": BATCH}
    size |= {"device": str(bench.device)}
    # far more batches than workers keep in hand, or only those would be counted
    few, rounds = (10, 2) if bench.small else (300, 3)
    workers = min(16, os.cpu_count() or 1)
    sides = {
        "dcli, resident uint8": resident(**size, steps=2 * few),
        f"DataLoader, {workers} workers": torchvision(workers, **size, steps=few),
        "DataLoader, no worker": torchvision(0, **size, steps=10),
    }
    for once in sides.values():
        once()
    seen = {
        name: [once()["seconds"] for _ in range(rounds)] for name, once in sides.items()
    }
    for name, values in seen.items():
        took = median(values)
        yield {"side": name, "img/s": 1 / took, f"ms for {BATCH}": took * BATCH * 1e3}
