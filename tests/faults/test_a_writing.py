"""Table A: faults while a checkpoint is written."""

from __future__ import annotations

import errno
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from harness import NOBODY, TRAIN, Place, control, controls, place, says
from tiny import outcome

from diffusion_cli import checkpoint, tracking

__all__ = ["controls", "place"]  # fixtures
pytestmark = pytest.mark.fault
KILLED = -9


def nothing(*_: Any) -> None:
    """No more is asked."""


def at_step(step: int, act: Callable[[], Any]) -> Callable[[], None]:
    """In the child: do something after a step."""

    def arrange() -> None:
        update = tracking.Meter.update

        def acting(meter: tracking.Meter, progress: Any) -> None:
            update(meter, progress)
            if progress.step == step:
                first = Path("run/checkpoints/step_00000004")
                while not first.is_dir():  # its writer has a thread of its own
                    time.sleep(0.01)
                act()

        tracking.Meter.update = acting  # type: ignore[method-assign]

    return arrange


def failing(function: str, number: int, times: int) -> Callable[[], None]:
    """In the child: a call of `os` fails so often, after the first save."""

    def arrange() -> None:
        real, left = getattr(os, function), [times]

        def call(*args: Any, **more: Any) -> Any:
            if Path("run/checkpoints/step_00000004").is_dir() and left[0]:
                left[0] -= 1
                raise OSError(number, os.strerror(number))
            return real(*args, **more)

        setattr(os, function, call)

    return arrange


def other_filesystem() -> None:
    """In the child: renaming a staged folder crosses filesystems."""
    real = Path.replace

    def replace(path: Path, target: Any) -> Path:
        if path.name.startswith(".tmp-step_00000008"):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        return real(path, target)

    Path.replace = replace  # type: ignore[method-assign]


def small_files() -> None:
    """In the child, after a first save: no file may grow beyond 2 kB."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))


def as_nobody() -> None:
    """In the child: another user, whose folder becomes read-only at step 6."""
    os.chown(".", NOBODY, NOBODY)
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    at_step(6, lambda: os.chmod("run/checkpoints", 0o555))()


def writable(there: Place) -> None:
    (there.run / "checkpoints").chmod(0o755)


def freed_in_a_second() -> None:
    """In the child: the disk is full once, then somebody makes room."""
    failing("fsync", errno.ENOSPC, 1)()


def incomplete_step() -> None:
    """In the child: something lies where step 8 is to go."""

    def put() -> None:
        Path("run/checkpoints/step_00000008").mkdir()
        Path("run/checkpoints/step_00000008/model.safetensors").write_bytes(b"torn")

    at_step(6, put)()


class Row(NamedTuple):
    """A fault, how the command ends and what it says; then it is run again."""

    name: str
    code: int
    says: str = ""
    fault: str = ""
    before: Callable[[], None] | None = None
    steps: tuple[int, ...] = (4,)  # that are there and sound afterwards
    mend: Callable[[Place], Any] = nothing
    words: tuple[str, ...] = ()


FULL = (
    r"error\[DISK-FULL\]: .*\d\.\d MB needed, .*\d MB free, older checkpoints here: 1"
)
ROWS = [
    Row("A1-before", KILLED, fault="ckpt.stage@2:kill"),
    Row("A1-after", KILLED, fault="ckpt.write:model.safetensors@0:kill", steps=()),
    Row("A2-1kB", KILLED, fault="ckpt.write:model.safetensors@1024:kill", steps=()),
    Row("A2-0", KILLED, fault="ckpt.write:optimizer.safetensors@0:kill", steps=()),
    Row("A2-half", KILLED, "", "ckpt.write:optimizer.safetensors@9000:kill", None, ()),
    Row("A2-manifest", KILLED, fault="ckpt.write:manifest.json@5:kill", steps=()),
    Row("A2-fsync", KILLED, fault="ckpt.fsync@9:kill"),
    Row("A3", KILLED, fault="ckpt.manifest@2:kill"),
    Row("A4", KILLED, fault="ckpt.rename@2:kill"),
    Row("A5", KILLED, fault="ckpt.dirsync@2:kill", steps=(4, 8)),
    Row("A5-prune", KILLED, fault="ckpt.prune@3:kill", steps=(4, 8, 12)),
    Row("A7", 6, FULL, "ckpt.manifest@2:enospc"),
    Row("A7-limit", 6, r"error\[DISK-FULL\]", before=at_step(6, small_files)),
    Row("A9", 6, FULL, "ckpt.fsync@9:enospc"),
    Row("A8", 0, "paused: disk full", "", freed_in_a_second, (8, 12),
        words=("checkpoint.on_full=wait",)),
    Row("A10-quota", 0, "retry 1/3", "", failing("fsync", errno.EDQUOT, 1), (8, 12)),
    Row("A10-io", 0, "retry 1/3", "", failing("fsync", errno.EIO, 1), (8, 12)),
    Row("A11", 6, r"retry 3/3(.|\n)*error\[IO\]: .*EIO", "",
        failing("fsync", errno.EIO, 99)),
    Row("A12", 6, r"error\[READONLY\]: .*step_00000008: .*EACCES",
        "step.loss@6:sleep:3", as_nobody, mend=writable),  # step 4 is written by then
    Row("A14", 0, "replacing step_00000008", "", incomplete_step, (8, 12)),
    Row("A15", 0, "", "ckpt.write:model.safetensors@0:sleep:0.1", None, (11, 12),
        words=("every.save=1",)),
    Row("A19", 6, "staging and target are on different filesystems", "",
        other_filesystem),
]  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_writing(row: Row, place: Place) -> None:
    told = place.dcli(*TRAIN, *row.words, fault=row.fault, before=row.before)
    assert told.code == row.code, told.err
    says(told, row.says)
    row.mend(place)
    folder = place.run / "checkpoints"
    if row.steps:
        assert [
            checkpoint.Checkpoint(path).step for path in checkpoint.steps(folder)
        ] == [*reversed(row.steps)]
    staged = list(folder.glob(".tmp-*"))
    assert not staged or row.code == KILLED
    again = place.dcli(*TRAIN, *row.words)
    assert again.code == 0, again.err
    for path in staged:
        assert (
            again.err.count(f"removing {path.name}, left by an interrupted save") == 1
        )
    assert outcome(place.run) == control()
    assert not list(folder.glob(".*"))


UNSAVABLE = """
from pathlib import Path

import torch
from diffusion_cli.networks import networks
from diffusion_cli.networks.mlp import MLP


@networks("unsavable")
class Unsavable(MLP):
    def get_extra_state(self):
        return {"path": Path("x")}

    def set_extra_state(self, state):
        pass
"""


def test_what_cannot_be_saved_is_told_after_one_step(place: Place) -> None:
    """A16: not at the first save, hours later."""
    place.file("mine.py", UNSAVABLE)
    words = ("plugins=[mine.py]", "network.name=unsavable", "every.save=1000")
    told = place.dcli(*(w for w in TRAIN if w[:7] != "network"), *words, "network=mlp")
    assert told.code == 1, told.err
    says(told, r"error\[UNSAVABLE\]: model: `network._extra_state` cannot be saved: ")
    assert "step 2/12" not in told.err and not (place.run / "checkpoints").exists()
