"""Files that appear whole or not at all, and a cache that is built once."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from diffusion_cli.errors import StorageError


@contextmanager
def staged(path: Path) -> Iterator[Path]:
    """A hidden neighbour of `path` that takes its name when the block succeeds."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def writing(folder: Path, hint: str) -> Iterator[None]:
    """Make `folder`, and say where it failed: full, read-only, not allowed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        where = error.filename or folder
        raise StorageError(f"{where}: {reason.lower()}", hint) from error


def build_once(folder: Path, build: Callable[[Path], None]) -> Path:
    """`folder`, filled by `build` if it is not there yet.

    Any number of processes may ask: one builds under a lock, the others wait. The
    folder appears under its name when it is complete.
    """
    hint = "set the variable DCLI_CACHE, or dataset.cache=..., to a writable folder"
    if folder.is_dir():
        return folder
    with writing(folder.parent, hint), FileLock(folder.with_suffix(".lock")):
        if not folder.is_dir():
            part = folder.with_name(f".{folder.name}.part")
            shutil.rmtree(part, ignore_errors=True)  # what a killed process left
            part.mkdir()
            try:
                build(part)
                os.replace(part, folder)
            finally:
                shutil.rmtree(part, ignore_errors=True)
    return folder
