"""What grows with the batch, the network and the data set, and how fast."""

from __future__ import annotations

import itertools
import json
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from diffusion_cli.core import Spec
from diffusion_cli.datasets.images import Images, image_spec
from diffusion_cli.datasets.tables import Table, read_table
from diffusion_cli.loading import batches
from diffusion_cli.rng import shuffled
from subjects import own_training
from subjects.memory import Peak

Once = Callable[[], dict[str, float]]
BATCH = 128
SHAPE = (3, 32, 32)
ENOUGH = 0.3  # processor seconds of a round


def step(words: list[str], pixels: int = 32) -> Once:
    """Processor seconds of a training step for each image, beside its counted work."""
    peak = Peak()
    spec = Spec((3, pixels, pixels))
    trainer, state = own_training.prepared(words, spec)
    steps = trainer.run(state, own_training.batches(trainer, spec))
    batch = trainer.settings.batch
    with FlopCounterMode(display=False) as counter:
        next(steps)
    gflop = counter.get_total_flops() / 1e9 / batch

    def once() -> dict[str, float]:
        begun, count = time.process_time(), 0
        while (took := time.process_time() - begun) < ENOUGH:
            next(steps)
            count += 1
        worked = took / (count * batch)
        told = {"GFLOP": gflop, "GFLOP/s": gflop / worked, "MB": peak.megabytes()}
        return {"worked": worked} | told

    return once


def indices(length: int) -> Once:
    """Processor seconds to ask for the indices of one step, far into the training."""
    peak = Peak()
    steps = itertools.count(10**6)

    def once() -> dict[str, float]:
        begun, count = time.process_time(), 200
        for number in itertools.islice(steps, count):
            shuffled(torch.arange(number * BATCH, (number + 1) * BATCH), length, 0)
        worked = (time.process_time() - begun) / count
        return {"worked": worked, "MB": peak.megabytes()}

    return once


def permuted(length: int) -> Once:
    """The same for a permutation that is kept in memory: the cost is at its start."""
    peak = Peak()

    def once() -> dict[str, float]:
        torch.randperm(length)
        return {"MB": peak.megabytes()}

    return once


class Stored(Images):
    """Black images in a cache on disk, whose file has no blocks."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.spec = image_spec(SHAPE, tuple("0123456789"))

    def read(self) -> Table:
        return read_table(self.folder)


def first_batch(length: int) -> Once:
    """Processor seconds from a cached data set to the first batch of a run."""

    def once() -> dict[str, float]:
        peak = Peak()
        data = Stored(folder)
        data.prepare()
        stream = batches(
            data,
            seed=0,
            first=0,
            last=1000,
            batch=BATCH,
            micro_batch=BATCH,
            device=torch.device("cpu"),
            workers=0,
        )
        next(next(stream))
        return {"MB": peak.megabytes()}

    folder = Path(tempfile.mkdtemp())
    weakref.finalize(once, shutil.rmtree, folder, ignore_errors=True)
    np.save(folder / "labels.npy", np.zeros(length, np.int64))
    (folder / "shape.json").write_text(json.dumps(SHAPE))
    with (folder / "pixels.u8").open("wb") as file:
        file.truncate(length * int(np.prod(SHAPE)))
    return once
