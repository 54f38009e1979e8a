"""Tables I and J: the run folder, its logs, and samples."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
from harness import SAMPLE, TRAIN, Place, control, controls, place, says, trained
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import outcome

__all__ = ["controls", "place"]  # fixtures
pytestmark = pytest.mark.fault


def files(folder: Path, pattern: str) -> dict[str, str]:
    """Hashes of files, by their place in a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob(pattern)
        if path.is_file()
    }


def jumping_clock() -> None:
    """In the child: the wall clock jumps by a day, to and fro."""
    real, calls = time.time, []

    def jump() -> float:
        calls.append(1)
        return real() + 86_400 * (-1) ** len(calls)

    time.time = jump


def no_stdout() -> None:
    """In the child: as after `>&-`."""
    os.close(1)
    sys.stdout = None  # type: ignore[assignment]


def full_stderr() -> None:
    os.dup2(os.open("/dev/full", os.O_WRONLY), 2)


class Row(NamedTuple):
    """A training that something odd surrounds; it ends as if nothing had happened."""

    name: str
    before: Callable[[], Any] | None = None
    env: Mapping[str, str] = MappingProxyType({})


ROWS = [
    Row("I9-dumb", None, {"TERM": "dumb", "COLUMNS": "20", "NO_COLOR": "1"}),
    Row("I11-clock", jumping_clock),
    Row("I11-zone", None, {"TZ": "Pacific/Kiritimati"}),
    Row("I12-no-git", None, {"PATH": "/nowhere"}),
    Row("I15-stdout", no_stdout),
    Row("I15-stderr", full_stderr),
    Row("R0-hash-seed", None, {"PYTHONHASHSEED": "7"}),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_surroundings_do_not_matter(row: Row, place: Place) -> None:
    told = place.dcli(*TRAIN, before=row.before, **row.env)
    assert told.code == 0, told.err
    assert "\r" not in told.err and "\x1b" not in told.err
    assert outcome(place.run) == control()


def test_one_run_at_a_time(place: Place) -> None:
    """I1, I2: the second is told who is there; a killed one leaves no lock."""
    first = place.start(*TRAIN, fault="step.loss@8:sleep:3").until("step 7/12")
    second = place.dcli(*TRAIN)
    assert second.code == 6 and second.seconds < 4
    says(second, rf"error\[LOCKED\]: .*pid {first.pid} on \S+ since 20\d\d-")
    first.send(signal.SIGKILL).end()
    assert place.dcli(*TRAIN).code == 0
    assert outcome(place.run) == control()


def test_a_finished_run_is_left_alone(place: Place) -> None:
    """I4."""
    place.put(trained())
    before = {p: p.stat().st_mtime_ns for p in place.run.rglob("*")}
    told = place.dcli(*TRAIN)
    assert told.code == 0 and told.seconds < 5
    says(told, r"already complete at step 12\nto extend it: .*trainer.steps=<more>")
    assert before == {p: p.stat().st_mtime_ns for p in place.run.rglob("*")}


def test_a_torn_event_file(place: Place) -> None:
    """I7: no step twice in TensorBoard, and the reader does not stumble."""
    told = place.dcli(*TRAIN, fault="step.loss@8:kill")
    assert told.code == -signal.SIGKILL
    torn = next((place.run / "tensorboard").iterdir())
    torn.write_bytes(torn.read_bytes()[: int(torn.stat().st_size * 0.6)])
    assert place.dcli(*TRAIN).code == 0
    events = EventAccumulator(str(place.run / "tensorboard")).Reload().Scalars("loss")
    steps = [event.step for event in events]
    assert steps == sorted(set(steps)) and steps[-1] == 12 and set(steps) >= {5, 12}


def drawn(there: Place, *words: str) -> dict[str, str]:
    told = there.dcli(*SAMPLE, *words)
    assert told.code == 0, told.err
    return files(there.work / told.out.strip(), "0*.*")


FAULTS = [
    ("J4-chunk", "sample.chunk@1:kill", -9, ""),
    ("J4-write", "sample.write@4:kill", -9, ""),
    ("J7", "sample.chunk@1:enospc", 6, r"error\[DISK-FULL\]"),
]


@pytest.mark.parametrize(("name", "fault", "code", "text"), FAULTS, ids=lambda x: x)
def test_samples_that_are_interrupted(
    name: str, fault: str, code: int, text: str, place: Place
) -> None:
    place.put(trained())
    whole = drawn(place, "out=run/whole")
    told = place.dcli(*SAMPLE, fault=fault)
    assert told.code == code, told.err
    says(told, text)
    kept = files(place.run / "samples", "*.npy")
    assert kept
    assert drawn(place) == whole and len(whole) == 6
    again = files(place.run / "samples", "*.npy")
    assert kept.items() <= again.items()
    assert not list(place.run.rglob("*.part"))


def test_more_samples_begin_with_the_same(place: Place) -> None:
    """J2."""
    place.put(trained())
    few, many = drawn(place, "out=run/a"), drawn(place, "n=100", "out=run/b")
    own = {name: many[name] for name in few if name.endswith(".npy")}
    assert own == {name: few[name] for name in own} and len(own) == 3


def test_a_class_that_is_not_there(place: Place) -> None:
    """J5."""
    place.put(trained())
    assert place.dcli(*SAMPLE, "label=99").code == 2


def test_another_run_takes_another_folder(place: Place) -> None:
    """I3."""
    place.put(trained())
    before = files(place.run, "*")
    told = place.dcli(*TRAIN, "network.width=8")
    assert told.code == 2
    says(told, r"holds another config\n  network.width: 16 -> 8\nhint: out=<another fo")
    assert files(place.run, "*") == before


LONG = ("trainer.steps=40", "every.save=5")


@pytest.mark.parametrize("round_", range(3))
def test_killed_ten_times_at_random(round_: int, place: Place) -> None:
    """R1, R4: train, sample, measure under 30 kills: nothing is lost or changed."""
    whole = trained(*LONG)
    chance = random.Random(round_)
    for verb, words, kills in (
        ("train", (*TRAIN, *LONG), 4),
        ("sample", (*SAMPLE, "n=200", "steps=20", "seed=1"), 3),
        ("eval", ("eval ckpt=run metric=w2 n=60 batch=4 nfe=20 device=cpu").split(), 3),
    ):
        for _ in range(kills):
            child = place.start(*words)
            time.sleep(chance.uniform(0.3, 1.5))
            told = child.send(signal.SIGKILL).end()
            assert told.code in (0, -signal.SIGKILL), told.err
        told = place.dcli(*words)
        assert told.code == 0, (verb, told.err)
    assert outcome(place.run) == outcome(whole)
    other = place.put(whole, "runs/whole")
    samples = files(place.run / "samples", "*.npy")
    assert drawn(place, "n=200", "steps=20", "seed=1", f"ckpt={other}", "out=run/b")
    fresh = files(place.run / "b", "*.npy")
    assert len(fresh) == 50 and set(fresh.values()) <= set(samples.values())
