"""Checkpoints are written while training goes on, and hold what was."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_cli import checkpoint, failpoints
from diffusion_cli.errors import StorageError
from diffusion_cli.run_folder import RunFolder
from diffusion_cli.saving import Saver
from diffusion_cli.settings import Keep
from diffusion_cli.stop import Stop

ABOUT = {
    "config": {},
    "data": {"shape": [2], "kind": "real", "classes": [], "low": -1.0, "high": 1.0},
}


@pytest.fixture
def saver(tmp_path: Path) -> Iterator[Saver]:
    with RunFolder(tmp_path / "run") as folder:
        yield Saver(folder, Keep(keep=2), Stop())
    failpoints.arm(None)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """A disk that takes nothing before it is told to."""
    ready, save = threading.Event(), checkpoint.save

    def late(*args: Any, **more: Any) -> Path:
        assert ready.wait(timeout=60)
        return save(*args, **more)

    monkeypatch.setattr(checkpoint, "save", late)
    return ready


def begin(saver: Saver, step: int, tensors: Mapping[str, Tensor]) -> None:
    saver.begin(step, {"model": tensors}, {}, ABOUT, None)


def saved(saver: Saver, step: int) -> dict[str, Tensor]:
    from diffusion_cli import artifact, tensorfile

    folder = saver.folder.checkpoints / f"step_{step:08d}"
    artifact.verify(folder)
    return tensorfile.read(folder / "model.safetensors")


def test_what_changes_while_it_is_written_is_not_saved(
    saver: Saver, disk: threading.Event
) -> None:
    weights = {"w": torch.zeros(3), "t": torch.arange(6.0).view(2, 3).T}
    begin(saver, 1, weights)
    saver.watch()  # does not wait
    assert (saver.asked, saver.saved) == (1, -1)
    weights["w"].fill_(7)
    disk.set()
    saver.watch(wait=True)
    assert saver.saved == 1 and saver.folder.status()["step"] == 1
    assert torch.equal(saved(saver, 1)["w"], torch.zeros(3))
    assert torch.equal(saved(saver, 1)["t"], weights["t"])


def test_one_is_written_at_a_time_in_the_same_memory(saver: Saver) -> None:
    weights = {"w": torch.zeros(3)}
    places = set()
    for step in range(4):
        weights["w"].fill_(step)
        begin(saver, step, weights)
        assert saver.saved == step - 1
        places.add(saver._copies["model"]["w"].data_ptr())
    saver.watch(wait=True)
    assert [saved(saver, step)["w"][0].item() for step in (2, 3)] == [2, 3]
    assert len(places) == 1
    assert len(checkpoint.steps(saver.folder.checkpoints)) == 2  # pruned


def test_what_the_writer_meets_is_raised_where_training_asks(saver: Saver) -> None:
    failpoints.arm("ckpt.manifest@1:enospc")
    begin(saver, 1, {"w": torch.zeros(3)})
    with pytest.raises(StorageError, match="No space left"):
        saver.watch(wait=True)
    saver.watch(wait=True)  # told once
    assert saver.saved == -1
    begin(saver, 2, {"w": torch.ones(3)})
    saver.watch(wait=True)
    assert saver.saved == 2


def test_a_state_that_grows_is_saved_whole(saver: Saver) -> None:
    begin(saver, 1, {"w": torch.zeros(3)})
    begin(saver, 2, {"w": torch.ones(4), "new": torch.ones(1, dtype=torch.int64)})
    saver.watch(wait=True)
    found = saved(saver, 2)
    assert found["w"].shape == (4,) and found["new"].dtype == torch.int64
