"""A run that trains in a tenth of a second, for the tests of trainer and commands."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_cli import (
    assemble,
    checkpoint,
    config,
    failpoints,
    loading,
    tracking,
)
from diffusion_cli.commands import train
from diffusion_cli.errors import Stopped
from diffusion_cli.settings import TrainerSettings
from diffusion_cli.state import State
from diffusion_cli.trainer import Trainer

MACHINE = ("images_per_second", "memory_gib")  # what a metric line says of the machine
TINY: dict[str, Any] = {
    "dataset": {"name": "toy2d", "size": 100, "shape": "moons"},
    "process": {"name": "gaussian", "schedule": {"name": "linear", "levels": 1000}},
    "parametrisation": {"name": "eps"},
    "objective": {
        "name": "denoise",
        "weight": {"name": "simple"},
        "time": {"name": "uniform"},
    },
    "coupling": {"name": "independent"},
    "guidance": None,
    "sampler": {"name": "ancestral", "steps": 2, "grid": {"name": "uniform"}},
    "network": {"name": "mlp", "width": 16, "depth": 1, "dropout": 0.2},
    "optimizer": {"name": "adamw", "lr": 0.01},
    "trainer": {"steps": 12, "batch": 8, "ema": [4.0], "ema_ramp": None, "workers": 0},
    "every": {"log": 5, "save": 4, "preview": 0},
    "checkpoint": {},
}


def tiny(**changes: Any) -> dict[str, Any]:
    """The checked config of a tiny run; groups are updated, components replaced."""
    values = dict(TINY)
    for key, change in changes.items():
        grouped = key in ("trainer", "every", "checkpoint")
        values[key] = {**TINY[key], **change} if grouped else change
    return config.check(values)


def outcome(folder: Path) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """What a run amounts to: hashes of its last checkpoint, its metrics."""
    found = checkpoint.load(folder)
    hashes = {name: entry["sha256"] for name, entry in found.files.items()}
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    metrics = [json.loads(line) for line in lines]
    return hashes, [
        {key: value for key, value in line.items() if key not in MACHINE}
        for line in metrics
    ]


CPU = torch.device("cpu")


class Setup:
    """A trainer with its state and its data."""

    def __init__(
        self,
        trainable: str | None = None,
        device: torch.device = CPU,
        parts: dict[str, Any] | None = None,
        **trainer: Any,
    ) -> None:
        values = tiny(trainer={"precision": "fp32", **trainer}, **(parts or {}))
        self.device = device
        self.data = assemble.dataset(values)
        self.data.prepare()
        built = assemble.parts(values, self.data.spec)
        self.settings = TrainerSettings(**values["trainer"])
        self.trainer = Trainer(
            self.settings,
            optimizer=values["optimizer"],
            seed=3,
            device=device,
            trainable=trainable,
        )
        self.state = self.trainer.start(built.model, built.objective)

    def batches(self, last: int = 5) -> Iterator[Iterator[loading.MicroBatch]]:
        return loading.batches(
            self.data,
            seed=3,
            first=self.state.step,
            last=last,
            batch=self.settings.batch,
            micro_batch=self.trainer.micro_batch,
            device=self.device,
            workers=0,
            reference=self.state.objective.reference,
        )

    def train(self, last: int = 5) -> State:
        for _ in self.trainer.run(self.state, self.batches(last)):
            pass
        return self.state


def snapshot(state: State) -> dict[str, Tensor]:
    return {
        f"{file}/{name}": tensor.clone()
        for file, tensors in state.tensors().items()
        for name, tensor in tensors.items()
    }


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(one[k], other[k]) for k in one
    )


def interrupted(
    folder: Path, step: int, number: int = signal.SIGTERM, **own: Any
) -> int:
    """Run with a signal after `step`; the exit code."""
    update = tracking.Meter.update

    def signalled(meter: tracking.Meter, progress: Any) -> None:
        update(meter, progress)
        if progress.step == step:
            os.kill(os.getpid(), number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracking.Meter, "update", signalled)
        try:
            train.run(tiny(out=str(folder), **own), [])
        except Stopped as stopped:
            return stopped.exit_code
    return 0


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield
    failpoints.arm(None)


@pytest.fixture(scope="module")
def control(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run nobody disturbed."""
    folder = tmp_path_factory.mktemp("control") / "run"
    train.run(tiny(out=str(folder)), [])
    return folder
