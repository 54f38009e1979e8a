"""Parsed images on disk: raw levels to map into memory, beside their labels."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from diffusion_cli.errors import DataError


class Table(NamedTuple):
    """All images of a set, (N, C, H, W) uint8 levels, and their labels, (N,)."""

    pixels: NDArray[np.uint8]
    labels: NDArray[Any]


def write_table(folder: Path, blocks: Iterable[Table]) -> None:
    """Write the blocks of a table one by one; memory holds one of them at a time."""
    labels: list[NDArray[Any]] = []
    shape: tuple[int, ...] = ()
    with (folder / "pixels.u8").open("wb") as file:
        for block in blocks:
            file.write(np.ascontiguousarray(block.pixels).data)
            labels.append(block.labels)
            shape = block.pixels.shape[1:]
    np.save(folder / "labels.npy", np.concatenate(labels))
    (folder / "shape.json").write_text(json.dumps(shape))


def read_table(folder: Path) -> Table:
    """The table in `folder`; pixels are mapped, not read, so they may exceed memory."""
    try:
        labels = np.load(folder / "labels.npy")
        shape = (len(labels), *json.loads((folder / "shape.json").read_text()))
        pixels = np.memmap(folder / "pixels.u8", np.uint8, "r", shape=shape)
    except (OSError, ValueError) as error:
        message = f"{folder}: the cached data set is damaged: {error}"
        raise DataError(message, f"rm -r {folder}", "DATA-CACHE") from error
    return Table(pixels, labels)
