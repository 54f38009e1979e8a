"""Parsed images on disk: raw levels to map into memory, beside their labels."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.format import read_array
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
    levels = folder / "pixels.u8"
    try:
        with (folder / "labels.npy").open("rb") as file:
            labels = read_array(file)
        inner = json.loads((folder / "shape.json").read_text())
        if labels.ndim != 1 or labels.dtype.kind not in "iu" or not _is_shape(inner):
            raise ValueError("no list of labels, or no shape")
        shape, size = (len(labels), *inner), levels.stat().st_size
        if math.prod(shape) != size:
            raise ValueError(f"{size} bytes are not images of shape {shape}")
        pixels = np.memmap(levels, np.uint8, "r", shape=shape)
    except (OSError, ValueError, RecursionError) as error:
        message = f"{folder}: the cached data set is damaged: {error}"
        raise DataError(message, f"rm -r {folder}", "DATA-CACHE") from error
    return Table(pixels, labels)


def _is_shape(value: Any) -> bool:
    """Whether a value is the (C, H, W) of an image."""
    if not isinstance(value, list) or len(value) != 3:
        return False
    return all(type(count) is int and count > 0 for count in value)
