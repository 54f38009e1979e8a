"""On a real SLURM: nothing is lost when jobs are told to go, and each ends once.

`make cluster-test`; it needs Debian and root, and installs what is missing.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from diffusion_cli import checkpoint, sweep

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]
SCRIPTS = Path(__file__).parents[2] / "scripts" / "cluster"
STEPS = 150
SLOW = "step.ema:sleep:0.1"  # a step takes a tenth of a second: 15 s for a run
SMALL = (
    *("dataset=toy2d", "network.width=8", "network.depth=1", "trainer.batch=8"),
    *("every.log=10", "every.save=0", "every.preview=0", "trainer.workers=0"),
    f"trainer.steps={STEPS}",
)
SLURM = ("hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Two nodes, from nothing; ended by pid."""
    if os.geteuid() or not shutil.which("apt-get"):
        pytest.skip("a SLURM of our own needs Debian and root")
    folder = tempfile.mkdtemp(prefix="dcli-slurm-")
    path = os.environ["PATH"]
    os.environ["PATH"] = f"{path}:/usr/sbin:/usr/local/sbin"
    try:
        words = ["bash", str(SCRIPTS / "up.sh"), folder]
        up = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
        os.environ["SLURM_CONF"] = up.stdout.strip().rpartition("=")[2]
        yield
    finally:
        subprocess.run(["bash", str(SCRIPTS / "down.sh"), folder], check=False)
        os.environ["PATH"] = path
        os.environ.pop("SLURM_CONF", None)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(autouse=True)
def place(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """An empty folder to work in, and an empty queue afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield tmp_path
    subprocess.run(["scancel", "--user=root"], check=False)
    until(lambda: not slurm("squeue", "--noheader"), "an empty queue")


def slurm(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


def until(holds: Callable[[], object], what: str, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.2)


def dcli(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "diffusion_cli", *words],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def batch(script: str, *options: str) -> str:
    """Submit a script; the id of its job."""
    Path("job.sh").write_text(f"#!/bin/bash\n{script}\n")
    words = ("sbatch", "--parsable", "--open-mode=append", "--output=job.log")
    return slurm(*words, *options, "job.sh").strip()


def train(*words: str) -> str:
    return " ".join([sys.executable, "-m diffusion_cli train", *SMALL, *words])


def state(job: str) -> str:
    told = slurm("scontrol", "show", "job", job)
    found = re.search(r"JobState=(\w+)", told)
    assert found
    return found[1]


def steps(run: Path) -> list[int]:
    """The steps that a run logged, so far."""
    path = run / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line)["step"] for line in text.splitlines()]


def the_run() -> Path:
    found = list(Path("runs").glob("toy2d-*"))
    return found[0] if found else Path("none yet")


def whole(run: Path, last: int = STEPS) -> None:
    """A run that is complete, each of its steps told once."""
    assert steps(run) == list(range(10, last + 1, 10))
    assert checkpoint.load(run).step == last


def test_a_sweep_is_an_array() -> None:
    sweeping = dcli("train", "-m", *SMALL, *SLURM, "seed=0,1", "optimizer.lr=1e-3,-1")
    _, err = sweeping.communicate(timeout=200)
    assert sweeping.returncode == 10, err
    assert "2 of 4 jobs failed" in err and "optimizer.lr: must be > 0" in err
    (home,) = sweep.HOME.glob("train-*")
    statuses = [job.status for job in sweep.jobs(home)]
    assert statuses == ["done", "failed", "done", "failed"]
    assert len({job.told["slurm"] for job in sweep.jobs(home)}) == 4
    again = dcli("train", "-m", *SMALL, *SLURM, "seed=0,1", "optimizer.lr=1e-3,-1")
    again.communicate(timeout=200)
    tries = [job.told["tries"] for job in sweep.jobs(home)]
    assert tries == [0, 2, 0, 2], "only what failed is tried again"


def test_a_signal_requeues_and_the_job_resumes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DCLI_FAULT", SLOW)
    sweeping = dcli("train", "-m", *SMALL, *SLURM)
    until(lambda: steps(the_run()), "the first steps")
    slurm("scancel", "--signal=USR2", "--user=root")
    _, err = sweeping.communicate(timeout=200)
    assert sweeping.returncode == 0, err
    whole(the_run())
    logs = "".join(path.read_text() for path in Path().rglob("*_log.out"))
    assert "resuming from step_" in logs


def test_a_time_limit_requeues_and_the_job_resumes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DCLI_FAULT", "step.ema:sleep:0.8")  # 48 s: longer than a job
    limit = ("hydra.launcher.timeout_min=1", "hydra.launcher.signal_delay_s=10")
    sweeping = dcli("train", "-m", *SMALL, *SLURM, *limit, "trainer.steps=60")
    _, err = sweeping.communicate(timeout=280)
    assert sweeping.returncode == 0, err
    whole(the_run(), 60)
    logs = "".join(path.read_text() for path in Path().rglob("*_log.out"))
    assert "resuming from step_" in logs


@pytest.mark.parametrize("launch", ["sbatch", "sweep"])
def test_a_job_that_makes_way_resumes(
    launch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DCLI_FAULT", SLOW)
    alone = ("--exclusive", "--nodelist=n1")
    sweeping = None
    if launch == "sbatch":
        batch(f"srun {train('out=run')}", "--requeue", *alone)
    else:
        more = "+hydra.launcher.additional_parameters"
        own = (f"{more}.exclusive=true", f"{more}.nodelist=n1")
        sweeping = dcli("train", "-m", *SMALL, *SLURM, "out=run", *own)
    until(lambda: steps(Path("run")), "the first steps")
    slurm("sbatch", "--partition=high", *alone, "--output=other.log", "--wrap=sleep 3")
    until(lambda: steps(Path("run"))[-1:] == [STEPS], "the end", 200)
    if sweeping is not None:
        assert sweeping.wait(60) == 0
    until(lambda: not slurm("squeue", "--noheader"), "an empty queue")
    whole(Path("run"))
    logs = [*Path().rglob("*_log.out"), *Path().glob("job.log")]
    assert "resuming from step_" in "".join(path.read_text() for path in logs)


def test_two_tasks_train_one_run() -> None:
    job = batch(f"srun {train('out=run')}", "--nodes=2", "--ntasks=2")
    until(lambda: state(job) not in ("PENDING", "RUNNING", "COMPLETING"), "the end")
    log = Path("job.log").read_text()
    assert state(job) == "COMPLETED", log
    whole(Path("run"))
    assert checkpoint.load("run").config["trainer"]["devices"] == 2
    assert log.count(f"step {STEPS}/{STEPS}") == 1


def test_what_is_cancelled_saves_and_stays_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DCLI_FAULT", SLOW)
    job = batch(f"exec {train('out=run')}", "--requeue")
    until(lambda: steps(Path("run")), "the first steps")
    slurm("scancel", "--full", job)
    until(lambda: not slurm("squeue", "--noheader"), "an empty queue")
    assert state(job) == "CANCELLED"
    assert 0 < checkpoint.load("run").step < STEPS
    assert json.loads(Path("run/status.json").read_text())["status"] == "stopped"
