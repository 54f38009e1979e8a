"""Samples that a user gives as files: what every data set reads back. No class here."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffusion_cli.core import Spec
from diffusion_cli.errors import DataError
from diffusion_cli.paths import shown

ARRAYS = (".npz", ".npy")
FAR = 10.0  # data is of order one: larger numbers are levels of grey, or a mistake


def files_in(path: Path, endings: tuple[str, ...]) -> list[Path]:
    """A file, or the files of a folder that `save` wrote, or all there are, sorted.

    Files with a number for a name are taken alone, so that a folder of `dcli sample`
    gives its samples and not the pictures beside them.
    """
    if not path.exists():
        message = f"{shown(str(path))} does not exist"
        raise DataError(message, "a file or a folder of samples", "DATA-PATH")
    if path.is_file():
        return [path]
    found = sorted(
        each
        for each in path.rglob("*")
        if each.suffix.lower() in endings
        and not any(part.startswith(".") for part in each.relative_to(path).parts)
        and each.is_file()
    )
    numbered = [each for each in found if each.stem.isdigit() and each.parent == path]
    whole = path / "samples.npz"
    if numbered or whole.is_file() or found:
        return numbered or ([whole] if whole.is_file() else found)
    message = f"{shown(str(path))}: no samples ({', '.join(endings)})"
    raise DataError(message, "a file or a folder of samples", "DATA-EMPTY")


def array(path: Path) -> Tensor:
    """The float32 of a .npy, or of `samples` in a .npz as `dcli sample` writes it."""
    loaded = _loaded(path)
    if not np.issubdtype(loaded.dtype, np.floating):
        raise broken(path, f"{loaded.dtype} numbers; samples are floats around 0")
    return torch.from_numpy(np.asarray(loaded, np.float32))


def token_array(path: Path, spec: Spec) -> Tensor:
    """The same of tokens, (N, L) int64, all of them below the vocabulary's size."""
    loaded = _loaded(path)
    if not np.issubdtype(loaded.dtype, np.integer):
        raise broken(path, f"{loaded.dtype} numbers; tokens are whole ones")
    x = torch.from_numpy(np.asarray(loaded, np.int64))
    whole = _shaped(path, x, spec.shape)
    if not 0 <= int(whole.min()) <= int(whole.max()) < spec.vocab:
        raise broken(path, f"tokens outside 0 .. {spec.vocab - 1}")
    return whole


def _loaded(path: Path) -> NDArray[Any]:
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.lib.npyio.NpzFile):
            with loaded:
                names = loaded.files
                if "samples" not in names and len(names) != 1:
                    raise ValueError(f"no array `samples` among {', '.join(names)}")
                loaded = loaded["samples" if "samples" in names else names[0]]
        return np.asarray(loaded)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise broken(path, str(error)) from error


def broken(path: Path, reason: str) -> DataError:
    """The refusal of a file that cannot be read."""
    return DataError(
        f"{shown(str(path))}: cannot be read: {shown(reason)}", "", "DATA-BAD"
    )


def _shaped(path: Path, x: Tensor, shape: tuple[int, ...]) -> Tensor:
    if tuple(x.shape[1:]) != shape or not len(x):
        wanted = ", ".join(map(str, ("N", *shape)))
        message = f"{shown(str(path))}: samples of shape {tuple(x.shape)}"
        raise DataError(message, f"the model's are ({wanted})", "DATA-SIZE")
    return x


def checked(path: Path, x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The samples of one file, (N, ...), if they are samples of that shape."""
    _shaped(path, x, shape)
    if not bool(x.isfinite().all()):
        raise broken(path, "some numbers are not finite")
    if float(x.abs().max()) > FAR:
        reason = f"numbers up to {float(x.abs().max()):g}; data is of order one"
        raise broken(path, reason)
    return x
