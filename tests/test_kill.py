"""Kill -9 at any moment, run the same command again: the run that was never killed."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest
from tiny import control, outcome, place, tiny

from diffusion_cli import checkpoint
from diffusion_cli.commands import train

__all__ = ["control", "place"]  # fixtures
pytestmark = pytest.mark.usefixtures("place")

POINTS = [
    "ckpt.stage@2:kill",
    "ckpt.write:model.safetensors@0:kill",
    "ckpt.write:model.safetensors@1024:kill",
    "ckpt.write:optimizer.safetensors@13000:kill",
    "ckpt.write:manifest.json@5:kill",
    "ckpt.fsync@9:kill",
    "ckpt.manifest@2:kill",
    "ckpt.rename@2:kill",
    "ckpt.dirsync@2:kill",
    "ckpt.prune@3:kill",
    "step.opt@7:kill",
    "step.ema@8:kill",
]


def child(folder: Path, fault: str, seconds: float | None = None) -> int:
    """A run in a process of its own, killed by its fault or after some time.

    It is a copy of this one, so that torch is not imported again for every kill.
    """
    pid = os.fork()
    if pid == 0:
        os.environ["DCLI_FAULT"] = fault
        code = 1
        try:
            train.run(tiny(out=str(folder)), [])
            code = 0
        finally:
            os._exit(code)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def check(folder: Path, control: Path) -> None:
    """The same command again ends as if nothing had happened."""
    train.run(tiny(out=str(folder)), [])
    assert outcome(folder) == outcome(control)
    left = {path.name for path in (folder / "checkpoints").iterdir()}
    assert left == {"step_00000008", "step_00000012"}
    assert checkpoint.load(folder).step == 12


@pytest.mark.parametrize("fault", POINTS)
def test_killed_at_a_point(fault: str, tmp_path: Path, control: Path) -> None:
    assert child(tmp_path / "run", fault) == -signal.SIGKILL
    check(tmp_path / "run", control)


def test_killed_after_a_whole_run(tmp_path: Path, control: Path) -> None:
    assert child(tmp_path / "run", "") == 0
    assert outcome(tmp_path / "run") == outcome(control)


@pytest.mark.slow
@pytest.mark.parametrize("moment", range(20))
def test_killed_at_a_random_moment(moment: int, tmp_path: Path, control: Path) -> None:
    seconds = random.Random(moment).uniform(0.05, 1.0)
    child(tmp_path / "run", "", seconds)
    check(tmp_path / "run", control)
