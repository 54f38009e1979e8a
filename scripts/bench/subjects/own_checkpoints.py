"""Saving and restoring a run: dcli's way, and torch's on the same state."""

from __future__ import annotations

import shutil
import tempfile
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from diffusion_cli import checkpoint
from diffusion_cli.run_folder import RunFolder
from diffusion_cli.saving import Saver
from diffusion_cli.settings import Keep
from diffusion_cli.state import State
from diffusion_cli.stop import Stop
from subjects.own_training import IMAGE, prepared

Once = Callable[[], dict[str, float]]


def _trained(words: list[str]) -> State:
    """A state whose optimiser has moments, without the time of a real step."""
    _, state = prepared(words)
    for parameter in state.model.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    state.optimizer.step()
    state.optimizer.zero_grad()
    return state


def _folder(owner: Callable[[], Any]) -> Path:
    """A folder that goes when its owner does."""
    folder = Path(tempfile.mkdtemp())
    weakref.finalize(owner, shutil.rmtree, folder, ignore_errors=True)
    return folder


def _about() -> dict[str, Any]:
    return {"config": {}, "data": IMAGE.plain()}


def stall(words: list[str]) -> Once:
    """Seconds that training waits, and until the checkpoint is on the disk."""
    state = _trained(words)

    def once() -> dict[str, float]:
        state.step += 1
        begun = time.perf_counter()
        saver.begin(state.step, state.tensors(), state.plain(), _about(), None)
        waited = time.perf_counter() - begun
        saver.watch(wait=True)
        return {"seconds": waited, "whole": time.perf_counter() - begun}

    folder = RunFolder(_folder(once) / "run")
    folder.__enter__()
    saver = Saver(folder, Keep(), Stop())
    return once


def restore(words: list[str]) -> Once:
    """Seconds to read, check and take back a checkpoint, and the parts of that."""
    state = _trained(words)

    def once() -> dict[str, float]:
        begun = time.perf_counter()
        found = checkpoint.newest(folder)
        assert found is not None
        checked = time.perf_counter()
        state.restore(found.tensors, found.plain())
        done = time.perf_counter()
        parts = {"hashing": checked - begun, "restoring": done - checked}
        return {"seconds": done - begun} | parts

    folder = _folder(once)
    checkpoint.save(folder, 1, state.tensors(), state.plain(), _about())
    return once


def whole(state: State) -> dict[str, Any]:
    """What a training script would hand to torch.save."""
    return {
        "model": state.model.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "average": {a.name: a.tensors for a in state.averages},
    }


def torch_save(words: list[str]) -> Once:
    """Seconds of torch.save."""
    state = _trained(words)

    def once() -> dict[str, float]:
        begun = time.perf_counter()
        torch.save(whole(state), path)
        return {"seconds": time.perf_counter() - begun}

    path = _folder(once) / "checkpoint.pt"
    return once


@torch.no_grad()
def _take(state: State, saved: dict[str, Any]) -> None:
    state.model.load_state_dict(saved["model"])
    state.optimizer.load_state_dict(saved["optimizer"])
    for average in state.averages:
        for name, tensor in average.tensors.items():
            tensor.copy_(saved["average"][average.name][name])


def torch_load(words: list[str]) -> Once:
    """Seconds of torch.load and of taking its state back."""
    state = _trained(words)

    def once() -> dict[str, float]:
        begun = time.perf_counter()
        _take(state, torch.load(path))
        return {"seconds": time.perf_counter() - begun}

    path = _folder(once) / "checkpoint.pt"
    torch.save(whole(state), path)
    return once
