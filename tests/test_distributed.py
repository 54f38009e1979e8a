"""Several processes train as one: the same numbers, one folder, one end."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from team import team
from tiny import MACHINE, place, tiny

from diffusion_cli import checkpoint, config, training
from diffusion_cli.commands import eval as evaluate
from diffusion_cli.commands import sample, train
from diffusion_cli.errors import ConfigError
from diffusion_cli.ranks import standing
from diffusion_cli.state import State
from diffusion_cli.trainer import Trainer

__all__ = ["place"]  # a fixture
pytestmark = pytest.mark.usefixtures("place")

# Adam blows the rounding errors of tiny gradients up to whole steps
SGD = {"name": "sgd", "lr": 0.05}
PLAIN = {"name": "mlp", "width": 16, "depth": 1, "dropout": 0.0}


def trained(
    folder: Path,
    size: int,
    steps: int = 12,
    micro_batch: int | None = None,
    **parts: Any,
) -> Path:
    """A run by so many processes; bf16 would round each micro-batch in its own way."""
    settings = {"batch": 16, "steps": steps, "micro_batch": micro_batch}
    settings |= {"precision": "fp32"}
    parts = {"network": PLAIN, "optimizer": SGD, **parts}
    values = tiny(out=str(folder), trainer=settings, **parts)
    assert team(size, lambda: train.run(values, [])) == [0] * size
    return folder


def losses(folder: Path) -> list[float]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def apart(one: Path, other: Path) -> float:
    """The largest difference between tensors of two runs, over their largest number."""
    found, wanted = checkpoint.load(one), checkpoint.load(other)
    gaps = [0.0]
    for name in ("model", "ema-4", "optimizer", "objective"):
        here, there = found.tensors(name), wanted.tensors(name)
        assert here.keys() == there.keys()
        for key in here:
            mine, theirs = here[key].double(), there[key].double()
            scale = max(1.0, float(theirs.abs().max()))
            gaps.append(float((mine - theirs).abs().max()) / scale)
    return max(gaps)


LOSSES: dict[str, dict[str, Any]] = {
    "denoise": {},
    "stratified and loss-aware": {
        "objective": {
            "name": "denoise",
            "weight": {"name": "simple"},
            "time": {
                "name": "loss_aware",
                "cells": 4,
                "history": 2,
                "stratified": True,
            },
        }
    },
    "several network calls": {
        "process": {"name": "jump"},
        "parametrisation": {"name": "direct"},
        "objective": {"name": "idempotent", "distance": "l2"},  # l1 has corners
        "optimizer": {"name": "sgd", "lr": 1e-4},
        "sampler": {"name": "ancestral", "steps": 1, "grid": {"name": "uniform"}},
    },
}


@pytest.mark.parametrize("parts", LOSSES.values(), ids=LOSSES.keys())
@pytest.mark.parametrize("size", [2, 4])
def test_any_number_of_processes_trains_the_same(
    size: int, parts: dict[str, Any], tmp_path: Path
) -> None:
    # a few steps: rounding errors grow from one to the next
    alone = trained(tmp_path / "1", 1, steps=4, **parts)
    shared = trained(tmp_path / "n", size, steps=4, **parts)
    assert losses(shared) == pytest.approx(losses(alone), rel=1e-6)
    assert apart(shared, alone) < 1e-5


def test_micro_batches_within_a_process(tmp_path: Path) -> None:
    alone = trained(tmp_path / "1", 1)
    shared = trained(tmp_path / "n", 2, micro_batch=4)
    assert losses(shared) == pytest.approx(losses(alone), rel=1e-6)
    assert apart(shared, alone) < 1e-5


def test_dropout_repeats_with_the_number_of_processes(tmp_path: Path) -> None:
    noisy = {**PLAIN, "dropout": 0.3}
    one = trained(tmp_path / "1", 2, network=noisy)
    other = trained(tmp_path / "2", 2, network=noisy)
    assert apart(one, other) == 0.0


def test_resumed_by_another_number_of_processes(tmp_path: Path) -> None:
    """Fault E8."""
    whole = trained(tmp_path / "whole", 1)
    trained(tmp_path / "run", 2, steps=8)
    trained(tmp_path / "run", 1, steps=12)
    assert losses(tmp_path / "run")[-1] == pytest.approx(losses(whole)[-1], rel=1e-5)
    assert apart(tmp_path / "run", whole) < 1e-5


def test_one_folder_one_stream(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Fault I14."""
    folder = trained(tmp_path / "run", 3 + 1)
    lines = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [5, 10, 12]
    assert all(math.isfinite(line[key]) for line in lines for key in MACHINE)
    assert len(list((folder / "tensorboard").iterdir())) == 1
    out, err = capfd.readouterr()
    assert out.split() == ["run"] or out.split() == [str(folder)]
    assert err.count("step 5/12") == 1


@pytest.mark.parametrize(
    ("fault", "rank", "code"),
    [("step.loss@5:nan", 1, 7), ("step.grad@5:nan", 0, 7)],
)
def test_what_is_not_finite_on_one_ends_all(
    fault: str, rank: int, code: int, tmp_path: Path
) -> None:
    """Fault D5."""
    values = tiny(out=str(tmp_path / "run"), trainer={"batch": 16})
    env = {"DCLI_FAULT": fault, "DCLI_FAULT_RANK": str(rank)}
    assert team(2, lambda: train.run(values, []), **env) == [code, code]
    assert checkpoint.load(tmp_path / "run").step == 4


def test_a_signal_to_one_stops_all_at_the_same_step(tmp_path: Path) -> None:
    """Fault C8."""
    values = tiny(out=str(tmp_path / "run"), trainer={"batch": 16, "steps": 10**6})

    def late() -> None:
        while not (tmp_path / "run" / "metrics.jsonl").read_text():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    def work() -> None:
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / "metrics.jsonl").touch()
        if os.environ["RANK"] == "1":
            threading.Thread(target=late).start()
        train.run(values, [])

    assert team(2, work) == [143, 143]
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["status"] == "stopped"
    assert checkpoint.load(tmp_path / "run").step == status["step"] > 0


def test_weights_that_drift_apart_are_not_saved(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Fault H4."""
    values = tiny(out=str(tmp_path / "run"), trainer={"batch": 16})

    class Drifting(Trainer):
        def check(self, state: State) -> None:
            if self.world.rank:
                with torch.no_grad():
                    next(state.model.parameters()).add_(1e-3)

    monkeypatch.setattr(training, "Trainer", Drifting)
    assert team(2, lambda: train.run(values, [])) == [9, 9]
    assert "of rank 1 is not that of rank 0" in capfd.readouterr().err


def test_devices_must_divide_the_batch() -> None:
    with pytest.raises(ConfigError, match="devices: must be a divisor of batch=8"):
        tiny(trainer={"devices": 3})
    with pytest.raises(ConfigError, match="a divisor of batch=8 / devices=2"):
        tiny(trainer={"devices": 2, "micro_batch": 8})


@pytest.mark.parametrize(
    ("env", "wanted"),
    [
        ({}, None),
        ({"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "0"}, (1, 4, 0)),
        ({"RANK": "0", "WORLD_SIZE": "1"}, None),
        (
            {"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "1"},
            (3, 4, 1),
        ),
        ({"SLURM_PROCID": "0"}, None),  # a batch script, not a step
    ],
)
def test_who_a_process_is(
    env: dict[str, str], wanted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert standing() == wanted


def test_a_rank_that_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault H5."""
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="rank 2 of 2"):
        standing()
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(ConfigError, match="WORLD_SIZE must be a number"):
        standing()


@pytest.mark.parametrize("size", [2, 3])
def test_any_number_of_processes_draws_the_same_bits(
    size: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Faults H6, J1."""
    run = trained(tmp_path / "run", 1)
    alone = drawn(run, tmp_path / "1", 1)
    capfd.readouterr()
    shared = drawn(run, tmp_path / "n", size)
    assert capfd.readouterr().out.split() == [str(tmp_path / "n")]
    for path in sorted(alone.rglob("*.*")):
        there = shared / path.relative_to(alone)
        assert there.read_bytes() == path.read_bytes(), path
    assert len(list(shared.rglob("*"))) == len(list(alone.rglob("*")))


def drawn(run: Path, out: Path, size: int) -> Path:
    """37 samples in chunks of 5, by so many processes."""
    words = {"ckpt": str(run), "n": 37, "batch": 5, "out": str(out), "format": "npz"}
    keys = {**words, "sampler": None, "guidance": None, "trajectory": "strip"}
    values = config.check(keys, "sample")
    assert team(size, lambda: sample.run(values, [])) == [0] * size
    return out


@pytest.mark.parametrize(
    "metric",
    [
        "elbo",
        "likelihood",
        "sliced_w2",
        "loss_per_noise_level",
        "calibration",
        "nearest",
    ],
)
def test_any_number_of_processes_measures_the_same(
    metric: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = trained(tmp_path / "run", 1)

    def measured(size: int) -> dict[str, float]:
        words = {"ckpt": str(run), "metric": {"name": metric, "n": 37}, "batch": 5}
        keys = {**words, "sampler": None, "guidance": None, "json": True}
        keys |= {"cache": str(tmp_path / f"cache-{size}"), "dataset": None}
        values = config.check(keys, "eval")
        capfd.readouterr()
        assert team(size, lambda: evaluate.run(values, [])) == [0] * size
        found: dict[str, float] = json.loads(capfd.readouterr().out)[metric]
        return found

    alone = measured(1)
    shutil.rmtree(run / "samples", ignore_errors=True)
    assert measured(3) == pytest.approx(alone, rel=1e-9, abs=1e-12)
