"""Table L: sweeps."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from harness import TRAIN, Place, controls, place, says
from tiny import outcome

__all__ = ["controls", "place"]  # fixtures
pytestmark = pytest.mark.fault

SWEEP = tuple(word for word in TRAIN if not word.startswith("out="))


def jobs(there: Place) -> dict[str, Any]:
    """What the jobs of a sweep came to."""
    return {path.name: outcome(path) for path in (there.work / "runs").glob("t*")}


def test_one_of_three_jobs_fails(place: Place) -> None:
    """L1: the others complete; the failure is told when it happens, and at the end."""
    told = place.dcli(*SWEEP, "-m", "optimizer.lr=1e-3,1e30,1e-2", "trainer.clip=0")
    assert told.code == 10, told.err
    says(
        told, r"(?s)error\[NONFINITE\].*job 2.*1 of 3 jobs failed\n.*exit 7.*lr=1e\+30"
    )
    done = [
        p
        for p in (place.work / "runs").glob("t*")
        if len(list(p.glob("checkpoints/*")))
    ]
    assert len(done) >= 2


def test_a_killed_sweep_goes_on(place: Place) -> None:
    """L3: finished jobs are left alone, the one that was killed goes on."""
    words = (*SWEEP, "-m", "seed=1,2,3")
    told = place.dcli(*words, fault="step.opt@7:kill", before=second_job_only)
    assert told.code == -signal.SIGKILL
    first = jobs(place)
    before = {
        p: p.stat().st_mtime_ns for p in (place.work / "runs").rglob("step_*12/*")
    }
    told = place.dcli(*words)
    assert told.code == 0, told.err
    says(told, r"already complete at step 12(.|\n)*resuming from step_00000004")
    assert before == {p: p.stat().st_mtime_ns for p in before} and before
    whole = jobs(place)
    assert len(whole) == 3 and len(first) == 2
    shutil.rmtree(place.work / "runs")
    assert place.dcli(*words).code == 0
    assert jobs(place) == whole


def second_job_only() -> None:
    """In the child: no fault in the first job."""
    from diffusion_cli import failpoints

    arm, seen = failpoints.arm, []

    def later(text: str | None) -> None:
        seen.append(text)
        arm(text if len(seen) == 2 else None)

    failpoints.arm = later  # type: ignore[assignment]


def test_a_launcher_that_is_not_there(place: Place) -> None:
    """L4."""
    told = place.dcli(*SWEEP, "-m", "hydra/launcher=nowhere", "seed=1,2")
    assert told.code == 2, told.err
    says(told, "nowhere")
    assert not list(Path(place.work).glob("runs/t*"))
