"""A run that stops and goes on is the run that never stopped, bit for bit."""

from __future__ import annotations

import errno
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from choices import formulation, node, options
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pictures import put
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import control, interrupted, outcome, place, tiny

from diffusion_cli import checkpoint, saving, tracking
from diffusion_cli.commands import train
from diffusion_cli.errors import (
    CheckpointError,
    NumericsError,
    Stopped,
    StorageError,
)
from diffusion_cli.processes import processes

__all__ = ["control", "place"]  # fixtures
pytestmark = pytest.mark.usefixtures("place")


def test_twice_is_the_same(control: Path) -> None:
    train.run(tiny(out="again"), [])
    assert outcome(Path("again")) == outcome(control)


def test_the_execution_may_change(control: Path) -> None:
    """Other saves, previews and workers, the same run."""
    every = {"log": 5, "save": 3, "preview": 5}
    train.run(tiny(out="other", every=every, trainer={"workers": 1}), [])
    assert outcome(Path("other")) == outcome(control)


@settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(stops=st.lists(st.integers(1, 11), min_size=1, max_size=3, unique=True))
def test_a_resumed_run_is_the_uninterrupted_one(
    stops: list[int], control: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("resumed") / "run"
    for step in sorted(stops):
        assert interrupted(folder, step) == 143
    train.run(tiny(out=str(folder)), [])
    assert outcome(folder) == outcome(control)


def data(process: str) -> dict[str, Any]:
    """The points of a tiny run, or images for a process that spoils images."""
    if process == "cold_desaturate":
        for level in range(6):
            colour = (40 * level, 200 - 30 * level, 90)
            put(Image.new("RGB", (4, 4), colour), Path("photos") / f"{level}.png")
        return {"dataset": {"name": "image_folder", "path": "photos", "cache": "cache"}}
    if process.startswith("cold_"):
        return {"dataset": {"name": "digits"}}
    if processes[node("process", process)["name"]].kind == "tokens":
        size = {"depth": 1, "width": 16, "heads": 2, "dropout": 0.2}
        network = {"name": "token_transformer", **size}
        return {"dataset": {"name": "digit_tokens"}, "network": network}
    return {}


@pytest.mark.parametrize("process", options("process"))
def test_every_formulation_resumes(process: str) -> None:
    own = formulation(process) | {"sampler": tiny()["sampler"]}
    own |= data(process)
    train.run(tiny(out="whole", **own), [])
    for step in (3, 8):
        assert interrupted(Path("parts"), step, **own) == 143
    train.run(tiny(out="parts", **own), [])
    assert outcome(Path("parts")) == outcome(Path("whole"))


@pytest.mark.parametrize("name", ["adam", "sgd", "lion", "lamb", "amos"])
def test_every_optimiser_resumes(name: str) -> None:
    own = {"optimizer": {"name": name}, "trainer": {"micro_batch": 4}}
    train.run(tiny(out="whole", **own), [])
    assert interrupted(Path("parts"), 7, **own) == 143
    train.run(tiny(out="parts", **own), [])
    assert outcome(Path("parts")) == outcome(Path("whole"))


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGINT, 130),
        (signal.SIGTERM, 143),
        (signal.SIGUSR1, 138),
        (signal.SIGUSR2, 140),
    ],
)
def test_signals(number: int, code: int, caplog: pytest.LogCaptureFixture) -> None:
    assert interrupted(Path("run"), 6, number) == code
    assert checkpoint.load("run").step == 6
    assert "stopping after this step" in caplog.text
    assert json.loads(Path("run/status.json").read_text())["status"] == "stopped"


def test_a_second_interrupt_aborts() -> None:
    update, before = tracking.Meter.update, signal.getsignal(signal.SIGINT)
    init, saver = saving.Saver.__init__, list[saving.Saver]()

    def known(self: saving.Saver, *args: Any) -> None:
        saver.append(self)
        init(self, *args)

    def twice(meter: tracking.Meter, progress: Any) -> None:
        update(meter, progress)
        if progress.step == 6:
            saver[0].watch(wait=True)  # an abort does not wait for what is in writing
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(tracking.Meter, "update", twice)
        patch.setattr(saving.Saver, "__init__", known)
        train.run(tiny(out="run"), [])
    assert checkpoint.load("run").step == 4
    assert signal.getsignal(signal.SIGINT) is before


def test_a_scheduler_hears_of_the_signal_after_the_save() -> None:
    heard: list[int] = []

    def requeue(number: int, frame: object) -> None:
        heard.append(checkpoint.load("run").step)

    before = signal.signal(signal.SIGUSR2, requeue)
    try:
        assert interrupted(Path("run"), 6, signal.SIGUSR2) == 140
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert heard == [6]


def test_a_scheduler_hears_of_it_though_the_save_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: heard.append(number))

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    try:
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match="No space left"):
            interrupted(Path("run"), 2, signal.SIGUSR2)
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert heard == [signal.SIGUSR2]


def test_a_signal_before_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def early(*args: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(train.devices, "tune", early)
    with pytest.raises(Stopped, match="nothing to save") as caught:
        train.run(tiny(out="run"), [])
    assert caught.value.exit_code == 143 and not Path("run").exists()


def test_the_time_budget(capsys: pytest.CaptureFixture[str], control: Path) -> None:
    limited = {"time_limit": 1e-6}
    train.run(tiny(out="run", trainer=limited), [])
    assert "time budget reached at step 1" in capsys.readouterr().err
    assert json.loads(Path("run/status.json").read_text())["status"] == "stopped"
    train.run(tiny(out="run"), [])
    assert outcome(Path("run")) == outcome(control)


def test_an_extended_run_is_the_longer_one() -> None:
    train.run(tiny(out="long", trainer={"steps": 20}), [])
    for steps in (10, 20):
        train.run(tiny(out="run", trainer={"steps": steps}), [])
    assert outcome(Path("run")) == outcome(Path("long"))


def test_a_mended_run_goes_on(monkeypatch: pytest.MonkeyPatch, control: Path) -> None:
    monkeypatch.setenv("DCLI_FAULT", "step.grad@7:nan")
    with pytest.raises(NumericsError):
        train.run(tiny(out="run"), [])
    monkeypatch.delenv("DCLI_FAULT")
    train.run(tiny(out="run"), [])
    assert outcome(Path("run")) == outcome(control)


def test_a_damaged_checkpoint_costs_only_time(control: Path) -> None:
    interrupted(Path("run"), 9)
    newest = checkpoint.steps(Path("run/checkpoints"))[0]
    (newest / "optimizer.safetensors").write_bytes(b"")
    train.run(tiny(out="run"), [])
    assert outcome(Path("run")) == outcome(control)
    assert (newest.parent / f".bad-{newest.name}").is_dir()
    for path in checkpoint.steps(newest.parent):
        (path / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="every checkpoint is damaged"):
        train.run(tiny(out="run", trainer={"steps": 20}), [])


def test_events_have_no_duplicates() -> None:
    interrupted(Path("run"), 6)
    torn = next(Path("run/tensorboard").iterdir())
    torn.write_bytes(torn.read_bytes()[:-7])
    train.run(tiny(out="run"), [])
    events = EventAccumulator("run/tensorboard").Reload()
    assert [event.step for event in events.Scalars("loss")] == [5, 10, 12]
