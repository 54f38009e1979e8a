"""Writing on a disk that is full for now."""

from __future__ import annotations

import time
from collections.abc import Callable

from diffusion_cli.errors import StorageError
from diffusion_cli.tracking import say

_PAUSE = 1.0  # seconds between two attempts


def patiently(write: Callable[[], None], wait: Callable[[], bool]) -> None:
    """Write; where the disk is full, say so and try again while `wait` holds."""
    told = False
    while True:
        try:
            return write()
        except StorageError as error:
            if error.code != "DISK-FULL" or not wait():
                raise
            if not told:
                say(f"paused: disk full: {error.message}")
            told = True
            time.sleep(_PAUSE)
