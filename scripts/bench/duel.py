"""Comparisons side by side: A B A B, medians, spread, and the ratio of every pair."""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peers import PEERS, ROOT, install

HERE = Path(__file__).parent
OWN = "dcli"


class Fault(Exception):
    """A side that cannot be measured here, and why."""


@dataclass(frozen=True)
class Setting:
    """How everything is measured in one run of the benchmark."""

    threads: int = 1
    rounds: int = 7
    small: bool = False  # shows that it runs; its numbers mean nothing


class Side(ABC):
    """One of those that are compared; a context while it is measured."""

    name: str

    def __enter__(self) -> Side:
        return self

    def __exit__(self, *ignored: object) -> None:
        return

    @abstractmethod
    def round(self) -> dict[str, float]:
        """One measurement: `seconds` of the clock, `worked` of the processor, more."""


@dataclass
class Code(Side):
    """A function of `subjects/`, in a process of its own that stays warm.

    Args:
        name: What it is called in tables.
        of: `MODULE.FUNCTION` below `subjects`.
        peer: The package whose environment it needs; None is ours.
        arguments: Of the function.
        warm: Rounds before the first one that counts.
    """

    name: str
    of: str
    setting: Setting
    peer: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    warm: int = 2

    def __enter__(self) -> Side:
        module, _, function = f"subjects.{self.of}".rpartition(".")
        how = [str(self.setting.threads), str(self.warm), module, function]
        how.append(json.dumps(self.arguments))
        self.told = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            [python(self.peer), str(HERE / "worker.py"), *how],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.told,
            text=True,
            env=environment(self.setting.threads),
        )
        self._heard()
        return self

    def round(self) -> dict[str, float]:
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return self._heard()

    def _heard(self) -> dict[str, float]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.told.seek(0)
            lines = self.told.read().strip().splitlines() or ["it ended"]
            raise Fault(f"{self.name}: {lines[-1]}")
        return dict(json.loads(line))

    def __exit__(self, *ignored: object) -> None:
        self.process.communicate()
        self.told.close()


@dataclass
class Command(Side):
    """A program from its start to its end."""

    name: str
    words: list[str]
    setting: Setting
    code: int = 0  # that it ends with
    told: dict[str, str] = field(default_factory=dict)  # in its environment

    def round(self) -> dict[str, float]:
        begun, before = time.perf_counter(), _children()
        done = subprocess.run(
            self.words,
            capture_output=True,
            text=True,
            env=environment(self.setting.threads) | self.told,
        )
        took, worked = time.perf_counter() - begun, _children() - before
        if done.returncode != self.code:
            lines = done.stderr.strip().splitlines() or [f"exit {done.returncode}"]
            raise Fault(f"{self.name}: {lines[-1]}")
        return {"seconds": took, "worked": worked}


def _children() -> float:
    """Processor seconds of all processes that were started and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def python(peer: str | None) -> str:
    """The interpreter of a package; `Fault` if it could not be installed."""
    if peer is None:
        return sys.executable
    found = install(PEERS[peer])
    if "fault" in found:
        raise Fault(f"{peer}: {found['fault']}")
    return PEERS[peer].python


def environment(threads: int) -> dict[str, str]:
    """Of every process that is measured: equal for all."""
    kept = {key: os.environ.get(key, "") for key in ("PATH", "HOME", "DCLI_DATA")}
    return kept | {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", ""),
    }


Numbers = dict[str, list[float]]


def compare(
    sides: list[Side], setting: Setting
) -> tuple[dict[str, Numbers], list[str]]:
    """Rounds of all sides in turn, each round in the other order; and who had a fault.

    The first side has to be there; another one that has a fault is left out.
    """
    faults: list[str] = []
    with ExitStack() as stack:
        ready = []
        for side in sides:
            try:
                ready.append(stack.enter_context(side))
            except Fault as fault:
                if side is sides[0]:
                    raise
                faults.append(str(fault))
        seen: dict[str, Numbers] = {side.name: {} for side in ready}
        for number in range(setting.rounds):
            for side in ready if number % 2 == 0 else reversed(ready):
                for key, value in side.round().items():
                    seen[side.name].setdefault(key, []).append(value)
    return seen, faults


def summary(values: list[float]) -> dict[str, float]:
    """Median, ends, and the width of the middle half in units of the median."""
    middle = statistics.median(values)
    low, _, high = (
        statistics.quantiles(values, n=4) if len(values) > 1 else [middle] * 3
    )
    spread = (high - low) / abs(middle) if middle else 0.0
    return {"median": middle, "min": min(values), "max": max(values), "spread": spread}


def ratios(own: list[float], other: list[float]) -> dict[str, float]:
    """How many times as much the other needs, pair by pair."""
    return summary([b / a for a, b in zip(own, other, strict=True)])
