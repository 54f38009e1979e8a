"""dcli's way from a data set to the batches of a step."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch

from diffusion_cli.datasets.images import Images, image_spec
from diffusion_cli.datasets.tables import Table
from diffusion_cli.device import tune
from diffusion_cli.loading import batches

Once = Callable[[], dict[str, float]]


class Noise(Images):
    """As many images of the size of CIFAR-10's as asked for."""

    def __init__(self, count: int) -> None:
        super().__init__(flip=True)
        self.count = count
        self.spec = image_spec((3, 32, 32), tuple("0123456789"))

    def read(self) -> Table:
        rng = np.random.default_rng(0)
        pixels = rng.integers(0, 256, (self.count, 3, 32, 32), np.uint8)
        return Table(pixels, rng.integers(0, 10, self.count))


def resident(
    count: int = 50_000, batch: int = 128, steps: int = 400, device: str = "cpu"
) -> Once:
    """Seconds for an image, of batches that a training step could take as they are."""
    data, place = Noise(count), torch.device(device)
    tune(place, deterministic=False)  # as every command does
    data.prepare()

    def once() -> dict[str, float]:
        stream = batches(
            data,
            seed=0,
            first=0,
            last=steps,
            batch=batch,
            micro_batch=batch,
            device=place,
            workers=0,
        )
        begun = time.perf_counter()
        for step in stream:
            for _ in step:
                pass
        if place.type == "cuda":
            torch.cuda.synchronize(place)
        return {"seconds": (time.perf_counter() - begun) / (steps * batch)}

    return once
