"""A command that starts its own processes: who fails first is named, none is left."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from diffusion_cli import checkpoint
from diffusion_cli.distributed import Bereft, Ranks
from diffusion_cli.errors import EnvironmentFault

WORDS = (
    "train dataset=toy2d process=ddpm network.width=16 network.depth=1 out=run "
    "trainer.devices=2 trainer.batch=16 trainer.workers=0 every.log=5 every.preview=0"
).split()


def start(folder: Path, *words: str, **env: str) -> subprocess.Popen[str]:
    """`dcli` in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "diffusion_cli", *WORDS, *words],
        cwd=folder,
        env={**os.environ, **env, "OMP_NUM_THREADS": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def left(folder: Path) -> list[str]:
    """Command lines of processes that work in a folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            here = (entry / "cwd").resolve() == folder.resolve()
            words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if here and words:
            found.append(words)
    return found


@pytest.mark.slow
def test_the_command_trains_by_two(tmp_path: Path) -> None:
    run = start(tmp_path, "trainer.steps=6")
    out, err = run.communicate(timeout=120)
    assert (run.returncode, out) == (0, "run\n"), err
    assert err.count("step 6/6") == 1
    assert checkpoint.load(tmp_path / "run").config["trainer"]["devices"] == 2


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("step.loss@3:kill", r"rank 1 was killed by SIGKILL"),
        pytest.param(
            "step.loss@3:exit:0",
            r"rank 1 ended without a word",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "step.loss@3:raise:ValueError",
            r"rank 1: ValueError: fault at step\.loss",
            marks=pytest.mark.slow,
        ),
        ("step.loss@3:sleep:100", r"rank 1 hangs: not there for `\w+` after"),
    ],
)
def test_a_rank_that_fails_ends_the_command(
    fault: str, said: str, tmp_path: Path
) -> None:
    """Faults H1, H2."""
    env = {"DCLI_FAULT": fault, "DCLI_FAULT_RANK": "1", "DCLI_PATIENCE": "3"}
    begun = time.monotonic()
    run = start(tmp_path, "trainer.steps=1000", **env)
    _, err = run.communicate(timeout=120)
    assert run.returncode == 9, err
    last = [line for line in err.splitlines() if line.startswith("error")]
    assert len(last) == 1 and re.search(said, last[0]), err
    assert left(tmp_path) == []
    assert time.monotonic() - begun < 60


DUPLICATE = """NCCL error in: NCCLUtils.cpp:77, invalid usage, NCCL version 2.28.9
ncclInvalidUsage: This usually reflects invalid usage of NCCL library.
Last error:
Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 1b000"""


def test_what_torch_says_of_a_meeting_is_told() -> None:
    world = object.__new__(Ranks)  # in no group
    world.rank, world.patience = 1, 20.0
    with pytest.raises(EnvironmentFault, match="share a GPU"), world._meeting("copy"):
        raise RuntimeError(DUPLICATE)
    with (
        pytest.raises(Bereft, match=r"`copy`: .* no space left"),
        world._meeting("copy"),
    ):
        raise RuntimeError("NCCL error\nLast error:\nshm: no space left on device")


def test_a_signal_saves_and_stops(tmp_path: Path) -> None:
    run = start(tmp_path, "trainer.steps=1000000")
    assert run.stderr is not None
    for line in run.stderr:
        if line.startswith("step"):
            break
    run.send_signal(signal.SIGTERM)
    _, err = run.communicate(timeout=60)
    assert run.returncode == 143, err
    assert err.count("SIGTERM: saved step_") == 1
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert checkpoint.load(tmp_path / "run").step == status["step"]
    assert left(tmp_path) == []


@pytest.mark.slow
def test_no_rank_outlives_the_command(tmp_path: Path) -> None:
    run = start(tmp_path, "trainer.steps=1000000")
    assert run.stderr is not None
    for line in run.stderr:
        if line.startswith("step"):
            break
    run.kill()
    run.communicate(timeout=60)
    deadline = time.monotonic() + 20
    while left(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert left(tmp_path) == []


@pytest.mark.slow
def test_an_error_of_all_is_told_once(tmp_path: Path) -> None:
    run = start(tmp_path, "trainer.steps=6", "init=nowhere")
    _, err = run.communicate(timeout=120)
    assert run.returncode == 4, err
    assert err.count("error") == 1
