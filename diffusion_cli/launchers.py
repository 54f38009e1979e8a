"""Where the jobs of a sweep run: processes of this machine, or a cluster's.

A job is a `dcli` command of its own. What becomes of it stands in the sweep's folder,
so nothing has to travel back, and a job that is killed cannot take the others along.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from diffusion_cli.errors import ConfigError, EnvironmentFault
from diffusion_cli.stop import Stop
from diffusion_cli.sweep import ENDED, Job, News, sources

_TICK = 0.2
_QUEUE = 5.0  # seconds between two looks at SLURM's queue


@dataclass
class Task:
    """One job, as it is sent to where it runs."""

    words: list[str]
    home: str
    number: int
    cwd: str
    sources: str

    @property
    def job(self) -> Job:
        """Its record."""
        return Job(Path(self.home), self.number)

    @property
    def env(self) -> dict[str, str]:
        """What tells a process which job it is."""
        where = {"DCLI_SWEEP": self.home, "DCLI_JOB": str(self.number)}
        return {**where, "DCLI_SOURCES": self.sources}

    def __call__(self) -> int:
        """Run it in this process; the exit code."""
        from diffusion_cli import cli

        os.chdir(self.cwd)
        os.environ |= self.env
        return cli.main(list(self.words))

    def checkpoint(self) -> Any:
        """What submitit sends again after a requeue: the same command resumes."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


class Jobs(Launcher):
    """Launches jobs by one of our own ways; `hydra.launcher.name` says which.

    Args:
        verb: The command.
        options: Its options, such as `--config-dir`.
        home: The folder of the sweep.
    """

    def __init__(self, verb: str, options: Sequence[str], home: Path) -> None:
        self.verb, self.options, self.home = verb, list(options), home

    def setup(
        self,
        *,
        hydra_context: HydraContext,
        task_function: TaskFunction,
        config: DictConfig,
    ) -> None:
        """Take the launcher's own config."""
        node: Any = OmegaConf.to_container(config.hydra.launcher, resolve=True)
        self.tries = config.tries
        self.way: str = node.pop("name")
        self.settings: dict[str, Any] = node

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Run every job that is not done yet, and wait for all."""
        now = sources()
        tasks = [
            Task(
                [self.verb, *self.options, *words],
                str(self.home.absolute()),
                initial_job_idx + i,
                os.getcwd(),
                now,
            )
            for i, words in enumerate(job_overrides)
        ]
        waiting = [t for t in tasks if not self._over(t.job)]
        for task in waiting:
            task.job.wait()
        done = f", {len(tasks) - len(waiting)} of them over" * (waiting != tasks)
        print(f"{len(tasks)} jobs{done}; logs: {self.home}/logs", file=sys.stderr)
        print(f"dcli sweep status {self.home}", file=sys.stderr)
        with Stop() as stop:
            stop.begin()
            WAYS[self.way](waiting, self.settings, stop)
            stop.end("the same command continues")
        return [
            JobReturn(words, status=JobStatus.COMPLETED, _return_value=task.job.value)
            for task, words in zip(tasks, job_overrides, strict=True)
        ]

    def _over(self, job: Job) -> bool:
        return job.status == "done" or job.spent(self.tries)


def by_joblib(tasks: list[Task], settings: dict[str, Any], stop: Stop) -> None:
    """Several processes of this machine at a time, each job in one of its own."""
    try:
        from joblib import Parallel, delayed
    except ImportError as error:
        raise _missing("joblib", "sweep") from error
    run = delayed(_process)
    n = settings["n_jobs"]
    Parallel(n_jobs=n, backend="threading")(run(task, stop) for task in tasks)


def _process(task: Task, stop: Stop) -> None:
    """A job in a process; signals to the sweep are passed on to it."""
    if stop.number is not None:
        return
    log = Path(task.home) / "logs" / f"{task.number:05d}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    words = [sys.executable, "-P", "-m", "diffusion_cli", *task.words]
    with log.open("ab") as file:
        process = subprocess.Popen(
            words,
            cwd=task.cwd,
            env=os.environ | task.env,
            stdout=file,
            stderr=file,
            process_group=0,
        )
    told = False
    while process.poll() is None:
        if stop.number is not None and not told:
            process.send_signal(stop.number)
            told = True
        time.sleep(_TICK)
    _settle(task, f"see {log}", process.returncode)


def by_submitit(
    tasks: list[Task], settings: dict[str, Any], stop: Stop, cluster: str
) -> None:
    """An array of SLURM jobs, or submitit's processes on this machine."""
    try:
        import submitit
    except ImportError as error:
        raise _missing("submitit", "slurm") from error
    if not tasks:
        return
    logs = Path(tasks[0].home) / "logs"
    own = {f"{cluster}_{k}": v for k, v in settings.items() if k not in _COMMON}
    timeouts = own.pop("slurm_max_num_timeout", None)
    first = {} if timeouts is None else {"slurm_max_num_timeout": timeouts}
    try:
        executor = submitit.AutoExecutor(logs / "%j", cluster=cluster, **first)
        common = {k: v for k, v in settings.items() if k in _COMMON}
        executor.update_parameters(**common, **own)
        with executor.batch():
            jobs = [executor.submit(task) for task in tasks]
    except (RuntimeError, submitit.core.utils.FailedJobError) as error:
        message = f"hydra.launcher: {str(error).strip().splitlines()[0]}"
        raise EnvironmentFault(message, "hydra/launcher=joblib, or SLURM") from error
    except (TypeError, NameError) as error:
        raise ConfigError(f"hydra.launcher: {error}", "sbatch --help") from error
    gone = _gone_from_queue if cluster == "slurm" else _gone_from_here
    _await(list(zip(tasks, jobs, strict=True)), gone, stop, logs)


_COMMON = (
    *("timeout_min", "cpus_per_task", "gpus_per_node", "tasks_per_node", "mem_gb"),
    *("nodes", "name", "stderr_to_stdout"),
)


def _await(
    open_: list[tuple[Task, Any]],
    gone: Callable[[list[Any]], set[str]],
    stop: Stop,
    logs: Path,
) -> None:
    """Until every job has ended or left the queue; a signal only ends the waiting."""
    looked = time.monotonic()
    news = News(logs.parent)
    while open_ and stop.number is None:
        time.sleep(_TICK)
        over = {job.number for job, told in news.look() if told.get("status") in ENDED}
        open_ = [(task, job) for task, job in open_ if task.number not in over]
        if time.monotonic() - looked > _QUEUE:
            looked = time.monotonic()
            lost = gone([job for _, job in open_])
            for task, job in open_:
                if job.job_id in lost:
                    _settle(task, f"it left the queue; see {logs / job.job_id}", None)
            open_ = [(task, job) for task, job in open_ if job.job_id not in lost]
    if open_:
        ids = " ".join(job.job_id for _, job in open_)
        print(f"the jobs go on; to end them: scancel {ids}", file=sys.stderr)


def _gone_from_queue(jobs: list[Any]) -> set[str]:
    """The ids that SLURM's queue does not know any more."""
    if not jobs:
        return set()
    ids = {job.job_id for job in jobs}
    words = ["squeue", "--noheader", "--array", "--format=%i"]
    try:
        told = subprocess.run(words, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return set()  # the controller is away for a while
    return ids - set(told.stdout.split())


def _gone_from_here(jobs: list[Any]) -> set[str]:
    return {job.job_id for job in jobs if job.done()}


def _settle(task: Task, where: str, code: int | None) -> None:
    """Say of a job that ended without a word that it failed."""
    job = task.job
    if job.status in ENDED or (job.status == "stopped" and code is not None):
        return
    if job.status == "waiting":
        job.begin(task.words[1:])
    how = "" if code is None else f", exit {code}"
    job.end("failed", code or 9, f"ended without a word{how}; {where}", None)


def _missing(package: str, extra: str) -> EnvironmentFault:
    message = f"hydra/launcher: needs the package {package}"
    return EnvironmentFault(message, f"pip install 'diffusion-cli[{extra}]'")


WAYS: dict[str, Callable[[list[Task], dict[str, Any], Stop], None]] = {
    "joblib": by_joblib,
    "slurm": lambda tasks, settings, stop: by_submitit(tasks, settings, stop, "slurm"),
    "submitit_local": lambda tasks, settings, stop: by_submitit(
        tasks, settings, stop, "local"
    ),
}
