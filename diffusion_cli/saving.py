"""Checkpoints of a run, written while training goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from threading import Thread
from typing import Any

import torch
from torch import Tensor

from diffusion_cli import checkpoint
from diffusion_cli.patience import patiently
from diffusion_cli.run_folder import RunFolder
from diffusion_cli.settings import Keep
from diffusion_cli.stop import Stop

Tensors = Mapping[str, Tensor]


class Saver:
    """Saves a run on a thread of its own, one checkpoint at a time.

    The training thread pays for a copy of the tensors in memory; hashes, the disk and
    the wait for it are the writer's. The memory of the copy, the size of a checkpoint,
    is kept for the next one. What the writer meets is raised by `watch`.

    Args:
        folder: Of the run.
        keep: Which checkpoints stay, and what to do on a full disk.
        stop: Ends the wait for a full disk.
    """

    def __init__(self, folder: RunFolder, keep: Keep, stop: Stop) -> None:
        self.folder, self.keep, self.stop = folder, keep, stop
        self.asked = self.saved = -1  # the last step to be saved; the last on the disk
        self._copies: dict[str, dict[str, Tensor]] = {}
        self._thread: Thread | None = None
        self._error: BaseException | None = None

    def begin(
        self,
        step: int,
        tensors: Mapping[str, Tensors],
        plain: Mapping[str, Any],
        about: Mapping[str, Any],
        best: int | None,
    ) -> None:
        """Begin the checkpoint of a step, once the one before it is written.

        Args:
            step: Number of steps done.
            tensors: As `checkpoint.save` wants them; they may change afterwards.
            plain: As `checkpoint.save` wants it; must not change.
            about: As `checkpoint.save` wants it.
            best: A step whose checkpoint is to stay.
        """
        self.watch(wait=True)
        begun, folder = time.monotonic(), self.folder.checkpoints
        copies = self._snapshot(tensors)
        patient = self.keep.on_full == "wait"

        def write() -> None:
            checkpoint.save(folder, step, copies, plain, about)
            checkpoint.prune(folder, self.keep, best)

        def work() -> None:
            patiently(write, lambda: patient and not self.stop.requested)
            self.stop.note = f"the last save took {time.monotonic() - begun:.1f} s"

        self.asked = step
        # a daemon: a second Ctrl-C does not wait for a disk
        self._thread = Thread(target=self._do, args=(work,), daemon=True)
        self._thread.start()

    def watch(self, wait: bool = False) -> None:
        """Take note of a checkpoint that is written; raise what the writer met.

        Args:
            wait: Until nothing is in writing.
        """
        if self._thread is None or (self._thread.is_alive() and not wait):
            return
        self._thread.join()
        self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error
        self.saved = self.asked
        self.folder.report("running", self.saved)

    @torch.no_grad()
    def _snapshot(self, tensors: Mapping[str, Tensors]) -> Mapping[str, Tensors]:
        """The tensors as they are now, in the memory of the host."""
        for file, group in tensors.items():
            kept = self._copies.get(file, {})
            self._copies[file] = copies = {
                name: _room(x, kept.get(name)) for name, x in group.items()
            }
            for name, x in group.items():
                copies[name].copy_(x, non_blocking=True)
        if any(x.is_cuda for group in tensors.values() for x in group.values()):
            torch.cuda.synchronize()
        return {file: self._copies[file] for file in tensors}

    def _do(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            self._error = error


def _room(like: Tensor, kept: Tensor | None) -> Tensor:
    """Memory of the host for a copy; the same as last time if it fits."""
    if kept is not None and kept.shape == like.shape and kept.dtype == like.dtype:
        return kept
    return torch.empty(like.shape, dtype=like.dtype, pin_memory=like.is_cuda)
