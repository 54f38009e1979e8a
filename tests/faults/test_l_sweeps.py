"""Table L: sweeps."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
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


def tree(there: Place) -> dict[str, Any]:
    """Every file that a sweep left; of those that tell the time, only their names."""
    found: dict[str, Any] = {}
    for path in (there.work / "runs").rglob("*"):
        name = str(path.relative_to(there.work))
        if path.is_file() and "/tensorboard/" not in name:
            timed = path.name in ("metrics.jsonl", "status.json") or "/sweeps/" in name
            found[name] = "" if timed else path.read_bytes()
    return found


def test_a_sweep_of_six_is_killed_twice(place: Place) -> None:
    """L3: finished jobs are left alone, killed ones go on; no file tells it later."""
    words = (*SWEEP, "-m", "seed=1,2,3,4,5,6")
    done: dict[Path, int] = {}
    for job in (2, 3):  # counted from the one at which the command begins
        fault = f"step.opt@{13 - job}:kill"
        told = place.dcli(*words, fault=fault, before=only_in_job(job))
        assert told.code == -signal.SIGKILL
        assert done == {path: path.stat().st_mtime_ns for path in done}
        finished = (place.work / "runs").rglob("step_*12/*")
        done = {path: path.stat().st_mtime_ns for path in finished}
    assert len(jobs(place)) == 3 and len({path.parent for path in done}) == 2
    told = place.dcli(*words)
    assert told.code == 0, told.err
    says(told, r"already complete at step 12(.|\n)*resuming from step_0000000[48]")
    assert done == {path: path.stat().st_mtime_ns for path in done}
    whole, results = tree(place), jobs(place)
    assert len(results) == 6
    shutil.rmtree(place.work / "runs")
    assert place.dcli(*words).code == 0
    assert jobs(place) == results
    undisturbed = tree(place)
    assert whole.keys() == undisturbed.keys()
    assert [name for name in whole if whole[name] != undisturbed[name]] == []


def test_a_search_is_killed_in_a_trial(place: Place) -> None:
    """L7: that trial goes on with its own parameters; n_trials is the total."""
    words = [*SWEEP, "-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=3"]
    words += ["optimizer.lr=tag(log,interval(1e-4,1e-2))"]
    told = place.dcli(*words, fault="step.opt@11:kill", before=only_in_job(2))
    assert told.code == -signal.SIGKILL
    first = sorted(path.name for path in (place.work / "runs").glob("t*"))
    assert len(first) == 2
    told = place.dcli(*words)
    assert told.code == 0, told.err
    says(told, r"resuming from step_0000000[48](.|\n)*search: 3 trials, 0 given up, 0")
    assert len(jobs(place)) == 3 and set(first) <= set(jobs(place))
    again = place.dcli(*words)
    assert again.code == 0 and len(jobs(place)) == 3
    says(again, r"search: 3 trials, 0 given up, 0 failed")


def only_in_job(number: int) -> Callable[[], None]:
    """In the child: faults come in one job only, counted from 1."""

    def arrange() -> None:
        from diffusion_cli import failpoints

        arm, seen = failpoints.arm, []

        def later(text: str | None) -> None:
            seen.append(text)
            arm(text if len(seen) == number else None)

        failpoints.arm = later  # type: ignore[assignment]

    return arrange


def test_a_sweep_notices_that_its_code_has_changed(place: Place) -> None:
    """L6: the job says so and goes on."""
    words = (*SWEEP, "-m", "hydra/launcher=submitit_local", "seed=1,2")
    told = place.dcli(*words, before=other_sources, seconds=200)
    assert told.code == 0, told.err
    logs = [path.read_text() for path in (place.work / "runs").rglob("*_log.out")]
    said = "the code changed since this was submitted"
    assert [log.count(said) for log in logs] == [1, 1], logs
    assert len(jobs(place)) == 2


def other_sources() -> None:
    """In the child: the package is another one than that of the jobs."""
    from diffusion_cli import launchers

    launchers.sources = lambda: "0123456789abcdef"  # type: ignore[attr-defined]


SCONTROL = """#!/bin/sh
echo "$@" >> asked
echo "JobId=7 ArrayJobId=6 ArrayTaskId=3 JobState=$STATE Requeue=1 BatchFlag=1"
"""


@pytest.mark.parametrize("state", ["RUNNING", "CANCELLED", "absent"])
def test_a_preempted_job_goes_back_into_the_queue(state: str, place: Place) -> None:
    """L5: one that was cancelled does not, nor does one whose SLURM is gone."""
    if state != "absent":
        place.file("bin/scontrol", SCONTROL).chmod(0o755)
    place.own.add("asked")
    path = f"{place.work}/bin:{os.environ['PATH']}"
    env = {"SLURM_JOB_ID": "7", "STATE": state, "PATH": path}
    for _ in range(2):
        child = place.start(*TRAIN, "trainer.steps=100000", **env)
        told = child.until(r"step \d+/").send(signal.SIGTERM).end()
        assert told.code == 143, told.err
    says(told, r"resuming from(.|\n)*SIGTERM: saved step_\d+")
    asked = place.work / "asked"
    lines = asked.read_text().splitlines() if asked.exists() else []
    wanted = ["show job 7", "requeue 6_3"] if state == "RUNNING" else ["show job 7"]
    assert lines == (wanted * 2 if state != "absent" else [])


def test_a_launcher_that_is_not_there(place: Place) -> None:
    """L4."""
    told = place.dcli(*SWEEP, "-m", "hydra/launcher=nowhere", "seed=1,2")
    assert told.code == 2, told.err
    says(told, "nowhere")
    assert not list(Path(place.work).glob("runs/t*"))
