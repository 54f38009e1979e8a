"""Sweeps: what is done stays done; what fails is told at once, and tried again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Dcli

from diffusion_cli import cli, launchers, sweep
from diffusion_cli.errors import DataError
from diffusion_cli.stop import Stop

SMALL = (
    *("dataset=toy2d", "network.width=8", "network.depth=1", "trainer.batch=8"),
    *("every.preview=0", "trainer.workers=0"),
)


class Fake:
    """A command that fails for some seeds, as long as it is told to."""

    def __init__(self) -> None:
        self.failing: set[int] = set()
        self.seen: list[int] = []

    def __call__(self, values: dict[str, Any], words: list[str]) -> float:
        seed = values["seed"]
        self.seen.append(seed)
        if seed in self.failing:
            raise DataError(f"no luck with {seed}")
        return float(seed)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    fake, real = Fake(), cli.command
    for_train = {"train": fake}
    monkeypatch.setattr(cli, "command", lambda verb: for_train.get(verb) or real(verb))
    return fake


def home() -> Path:
    (found,) = sweep.HOME.glob("train-*")
    return found


def test_a_failed_job_is_tried_again(dcli: Dcli, fake: Fake) -> None:
    words = ("train", "-m", "seed=0,1,2", "tries=2")
    fake.failing = {1}
    first = dcli(*words)
    assert first.code == 10
    assert "1 of 3 jobs failed" in first.err and "job 1: exit 3: seed=1" in first.err
    assert [job.status for job in sweep.jobs(home())] == ["done", "failed", "done"]
    again = dcli(*words)
    assert again.code == 10 and fake.seen == [0, 1, 2, 0, 1, 2]
    given_up = dcli(*words)
    assert given_up.code == 10 and "it failed 2 times: tries=<more>" in given_up.err
    fake.failing = set()
    assert dcli("train", "-m", "seed=0,1,2", "tries=3").code == 0
    assert [job.value for job in sweep.jobs(home())] == [0.0, 1.0, 2.0]


def test_how_it_is_launched_is_not_which_sweep_it_is(tmp_path: Path) -> None:
    words = ["-m", "seed=0,1"]
    assert sweep.folder("train", words) == sweep.folder(
        "train", [*words, "hydra/launcher=slurm", "hydra.launcher.nodes=2", "tries=9"]
    )
    assert sweep.folder("train", words) != sweep.folder("train", ["-m", "seed=0,2"])
    assert sweep.folder("train", words) != sweep.folder("eval", words)


def test_the_status(dcli: Dcli, fake: Fake) -> None:
    fake.failing = {1}
    dcli("train", "-m", "seed=0,1")
    shown = dcli("sweep", "status")
    assert shown.code == 0
    head, names, first, second, why = shown.out.splitlines()
    assert names.split() == ["job", "status", "value", "arguments"]
    assert head == f"{home()}  1 done, 1 failed"
    assert first.split() == ["0", "done", "0", "seed=0"]
    assert second.split() == ["1", "failed", "seed=1"]
    assert why.strip() == "exit 3: no luck with 1"
    told = json.loads(dcli("sweep", "status", str(home()), "--json").out)[str(home())]
    assert [(job["job"], job["status"], job["code"]) for job in told] == [
        (0, "done", 0),
        (1, "failed", 3),
    ]


def test_a_job_whose_process_is_gone_was_killed(dcli: Dcli, fake: Fake) -> None:
    dcli("train", "-m", "seed=0,1")
    job = sweep.jobs(home())[1]
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    job.path.write_text(
        json.dumps({**job.told, "status": "running", "pid": process.pid})
    )
    assert "1 done, 1 killed" in dcli("sweep", "status").out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "sweep: status?"),
        (["statsu"], "there is no `statsu`; did you mean `status`?"),
        (["status"], "runs/sweeps is empty"),
        (["status", "nowhere"], "nowhere holds no sweep"),
        (["status", "--jsn"], "`--jsn`?"),
    ],
)
def test_what_has_no_status(words: list[str], said: str, dcli: Dcli) -> None:
    outcome = dcli("sweep", *words)
    assert outcome.code == 2 and said in outcome.err


def test_records_that_say_little_are_shown(dcli: Dcli, tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir()
    for name, text in (
        ("00002", "{}"),
        ("00010", '{"status": "failed"}'),
        ("1a", "{}"),
    ):
        (tmp_path / "jobs" / f"{name}.json").write_text(text)
    got = dcli("sweep", "status", str(tmp_path))
    assert got.code == 0 and "1 unknown, 1 failed" in got.out, got.err


def test_a_torn_record_is_a_job_that_waits(tmp_path: Path) -> None:
    job = sweep.Job(tmp_path, 3)
    assert job.status == "waiting" and not job.spent(1)
    job.path.parent.mkdir()
    job.path.write_text('{"status": "do')
    assert job.status == "waiting"


def failure(home: Path, number: int = 3, **more: Any) -> None:
    """Of a job in another process, an hour from now."""
    told = {"status": "failed", "ended": time.time() + 3600, "pid": 1, **more}
    sweep.Job(home, number)._write({"overrides": ["seed=3"], **told})


class Inline:
    """A thread that has ended when it has started."""

    def __init__(self, target: Callable[[], None], daemon: bool) -> None:
        self.start = target

    def join(self) -> None:
        pass


def test_a_failure_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often its file changes while somebody looks."""

    class Ticks(threading.Event):
        left = 4

        def wait(self, timeout: float | None = None) -> bool:
            failure(tmp_path, code=3, error="no luck")
            failure(tmp_path, 4, code=3, error="told here", pid=os.getpid())
            self.left -= 1
            return self.left == 0

    monkeypatch.setattr(sweep.threading, "Event", Ticks)
    monkeypatch.setattr(sweep.threading, "Thread", Inline)
    told: list[str] = []
    with sweep.watched(tmp_path, told.append):
        pass
    assert told == ["job 3: exit 3: seed=3\n  no luck"]


@pytest.mark.parametrize(
    "text", ["{}", '{"a": 1}', '{"status": "failed", "ended": "x"}', '{"ended": 1e99}']
)
def test_a_job_file_that_says_little_ends_no_watch(text: str, tmp_path: Path) -> None:
    told: list[str] = []
    with sweep.watched(tmp_path, told.append):
        failure(tmp_path)  # neither why nor how
        (tmp_path / "jobs" / "00001.json").write_text(text)
    assert len(told) == 1 and told[0].startswith("job 3: exit ")


@pytest.mark.parametrize("status", sweep.ENDED)
def test_a_job_that_ended_is_not_waited_for(
    status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept = iter(range(20))
    monkeypatch.setattr(launchers.time, "sleep", lambda seconds: next(slept))
    task = launchers.Task(["train"], str(tmp_path), 0, str(tmp_path), "")
    task.job.begin([])
    task.job.end(status, 0, "", None)
    (tmp_path / "jobs" / "00007.json").symlink_to("nowhere")
    launchers._await([(task, None)], lambda jobs: set(), Stop(), tmp_path / "logs")


@pytest.mark.parametrize("package", ["joblib", "submitit"])
def test_a_launcher_without_its_package(
    package: str, dcli: Dcli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault L4."""
    monkeypatch.setitem(sys.modules, package, None)
    name = "slurm" if package == "submitit" else package
    outcome = dcli("train", "-m", "seed=0,1", f"hydra/launcher={name}")
    assert outcome.code == 5, outcome.err
    assert f"needs the package {package}" in outcome.err
    assert "pip install 'diffusion-cli[" in outcome.err


def test_slurm_without_slurm(dcli: Dcli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault L4."""
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", os.path.dirname(sys.executable))
    outcome = dcli("train", "-m", "seed=0,1", "hydra/launcher=slurm")
    assert outcome.code == 5, outcome.err


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "diffusion_cli", *words],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_jobs_side_by_side(launcher: str, tmp_path: Path) -> None:
    words = ("train", "-m", *SMALL, "trainer.steps=3", "optimizer.lr=1e-3,-1")
    run = start(tmp_path, *words, f"hydra/launcher={launcher}")
    _, err = run.communicate(timeout=200)
    assert run.returncode == 10, err
    assert "1 of 2 jobs failed" in err
    assert err.count("exit 2: ") == 2, "as it happens, and in the table"
    (folder,) = (tmp_path / sweep.HOME).glob("train-*")
    assert [job.status for job in sweep.jobs(folder)] == ["done", "failed"]
    assert sweep.jobs(folder)[1].told["error"] == "optimizer.lr: must be > 0, got -1.0"
    assert list((folder / "logs").iterdir())


@pytest.mark.slow
def test_a_signal_reaches_the_jobs(tmp_path: Path) -> None:
    words = ("train", "-m", *SMALL, "trainer.steps=1000000", "seed=0,1")
    run = start(tmp_path, *words, "hydra/launcher=joblib")
    deadline = time.monotonic() + 120
    while not all(
        (path / "metrics.jsonl").exists() for path in tmp_path.glob("runs/toy2d*")
    ) or not list(tmp_path.glob("runs/toy2d*")):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    time.sleep(1)
    run.send_signal(signal.SIGTERM)
    _, err = run.communicate(timeout=60)
    assert run.returncode == 143, err
    (folder,) = (tmp_path / sweep.HOME).glob("train-*")
    assert {job.status for job in sweep.jobs(folder)} == {"stopped"}
