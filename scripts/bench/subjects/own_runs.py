"""A folder of runs, or a sweep of jobs, and what it takes to tell of it."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
import yaml

from diffusion_cli import cli
from diffusion_cli.run_folder import RunFolder
from diffusion_cli.sweep import Job, News
from subjects.memory import Peak
from subjects.own_training import composed

Once = Callable[[], dict[str, float]]
SAID = ("config.yaml", "overrides.yaml", "environment.json")
LOGS = 20  # lines of metrics of a run


def runs(folder: Path, count: int) -> None:
    """Runs that differ in their seed; files as `dcli train` leaves them, no weights."""
    config: dict[str, Any] = composed(["+exp=toy2d"])
    first = RunFolder(folder / "run-00000")
    first.path.mkdir(parents=True)
    first.describe(config, ["+exp=toy2d", "seed=0"], torch.device("cpu"))
    said = {name: (first.path / name).read_text() for name in SAID}
    log = [
        {"step": 10 * i, "loss": 1 / i, "grad_norm": 1.0} for i in range(1, LOGS + 1)
    ]
    said["metrics.jsonl"] = "".join(json.dumps(line) + "\n" for line in log)
    for number in range(count):
        config["seed"] = number
        said["config.yaml"] = yaml.dump(config, Dumper=yaml.CSafeDumper)
        said["overrides.yaml"] = f"[+exp=toy2d, seed={number}]\n"
        run = RunFolder(folder / f"run-{number:05d}")
        run.path.mkdir(exist_ok=True)
        for name, text in said.items():
            run.write(name, text)
        run.report("complete", 10 * LOGS)


def jobs(folder: Path, count: int) -> None:
    """Jobs of a sweep that are done."""
    for number in range(count):
        job = Job(folder, number)
        job.begin(["+exp=toy2d", f"seed={number}"])
        job.end("done", 0, "", 1 / (number + 1))


def made(folder: Path, counts: Sequence[int]) -> None:
    """`runs-10` with as many runs, `jobs-10` with as many jobs, and so on."""
    for count in counts:
        runs(folder / f"runs-{count}", count)
        jobs(folder / f"jobs-{count}", count)


def command(words: list[str], folder: str, out: str | None = None) -> Once:
    """A command that reads a folder, in a process that is warm."""
    rest = [] if out is None else [f"out={out}"]

    def once() -> dict[str, float]:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            code = cli.main([*words, folder, *rest])
        if code:
            raise RuntimeError(f"{words} ended with {code}")
        return {"MB": peak.megabytes()}

    cli.command(words[0])  # imports it
    peak = Peak()
    return once


def watching(folder: str) -> Once:
    """A look at a sweep that waits for jobs, of which none has anything to say."""
    news = News(Path(folder))
    for _ in range(2):
        list(news.look())
        time.sleep(2.1)

    def once() -> dict[str, float]:
        begun = time.process_time()
        for _ in range(100):
            list(news.look())
        return {"worked": (time.process_time() - begun) / 100}

    return once
