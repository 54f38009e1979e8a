"""Time and memory on the device, and the sides that are measured in turn on it.

A CUDA device works behind the program's back: points of time are events in its queue,
and nothing is read before it has come that far.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from signal import ITIMER_REAL, SIGALRM, setitimer, signal
from typing import Any

import torch

Once = Callable[[], object]
Row = dict[str, Any]  # `side`, and numbers by what they are called, or a `fault`


@dataclass(frozen=True)
class Bench:
    """What an item is told.

    Args:
        device: Where to measure.
        small: That it runs is what counts; its numbers mean nothing.
        until: When it has to be done, by `time.monotonic`.
        picture: Where samples go.
    """

    device: torch.device
    small: bool
    until: float
    picture: Path

    def left(self) -> float:
        """Seconds until it has to be done."""
        return self.until - time.monotonic()


class Marks:
    """Points of time in the order of the device's work; setting one does not wait."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.points: list[Any] = []

    def set(self) -> None:
        """A point behind all that was asked of the device so far."""
        if not self.cuda:
            self.points.append(time.perf_counter())
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self.points.append(event)

    def gaps(self) -> list[float]:
        """Seconds between neighbours; waits for the last one."""
        pairs = list(zip(self.points, self.points[1:], strict=False))
        if not self.cuda:
            return [after - before for before, after in pairs]
        self.points[-1].synchronize()
        return [before.elapsed_time(after) / 1e3 for before, after in pairs]


def seconds(device: torch.device, once: Once, times: int = 1) -> float:
    """Mean seconds of one call in `times`, from an idle device to an idle device."""
    wait(device)
    marks = Marks(device)
    marks.set()
    for _ in range(times):
        once()
    marks.set()
    return marks.gaps()[0] / times


def best(device: torch.device, once: Once, times: int, rounds: int = 5) -> float:
    """The shortest of some rounds after a warm-up: what the device can do."""
    seconds(device, once, times)
    return min(seconds(device, once, times) for _ in range(rounds))


def wait(device: torch.device) -> None:
    """Until the device has done all that it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def in_turn(
    bench: Bench, sides: dict[str, Once], times: int, rounds: int, until: float
) -> dict[str, list[float]]:
    """Seconds of a call for all sides in turn, each round in the other order.

    There are two rounds at least, and no more that would end after `until`.
    """
    seen: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        begun = time.monotonic()
        for name in list(sides) if number % 2 == 0 else reversed(sides):
            seen[name].append(seconds(bench.device, sides[name], times))
        now = time.monotonic()
        if number > 0 and now + (now - begun) > until:
            break
    return seen


def spread(values: list[float]) -> float:
    """From the smallest to the largest, in units of the median."""
    return (max(values) - min(values)) / statistics.median(values)


def prepared(bench: Bench, make: Callable[[], Once], limit: float) -> tuple[Once, Row]:
    """A side that is warm, the seconds that took, and the most memory of a call.

    Memory is what it takes beside all that was there before it was made.
    """
    cuda = bench.device.type == "cuda"
    held = torch.cuda.memory_allocated(bench.device) if cuda else 0
    begun = time.monotonic()
    with limited(limit):
        once = make()
        once()
        wait(bench.device)
        took = time.monotonic() - begun
        once()  # the first call of a new shape also tries out kernels
    if not cuda:
        return once, {"s to first": took}
    torch.cuda.reset_peak_memory_stats(bench.device)
    once()
    wait(bench.device)
    most = torch.cuda.max_memory_allocated(bench.device) - held
    return once, {"s to first": took, "GiB": most / 2**30}


def ready(
    bench: Bench, makers: dict[str, Callable[[], Once]], limit: float
) -> tuple[dict[str, Once], dict[str, Row]]:
    """Those that could be prepared; and a row of each, a fault where it could not."""
    sides, rows = {}, {}
    for name, make in makers.items():
        try:
            sides[name], rows[name] = prepared(bench, make, limit)
        except Exception as problem:  # whatever it is, the others go on
            rows[name] = {"fault": reason(problem)}
        if name not in sides:
            free(bench.device)
    return sides, rows


def reason(problem: BaseException) -> str:
    """An error in one line."""
    lines = str(problem).strip().splitlines()
    if isinstance(problem, ModuleNotFoundError):
        return f"{problem.name} is not installed"
    kind = type(problem).__name__
    if not lines:
        return kind
    plain = isinstance(problem, NotImplementedError | FileNotFoundError | TimeoutError)
    return lines[0] if plain else f"{kind}: {lines[0]}"


def free(device: torch.device) -> None:
    """Give back the memory of what is no longer used."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


@contextmanager
def limited(limit: float) -> Iterator[None]:
    """`TimeoutError` in here after `limit` seconds."""

    def ring(*ignored: object) -> None:
        raise TimeoutError(f"not ready after {limit:.0f} s")

    before = signal(SIGALRM, ring)
    setitimer(ITIMER_REAL, limit)
    try:
        yield
    finally:
        setitimer(ITIMER_REAL, 0)
        signal(SIGALRM, before)


def tune(on: bool) -> None:
    """Tensor cores for float32 and trial of kernels, as dcli has it; or neither."""
    torch.set_float32_matmul_precision("high" if on else "highest")
    torch.backends.cudnn.benchmark = on


def tuned(once: Once, on: bool) -> Once:
    """The same under settings of its own, whatever the sides around it need."""

    def under() -> None:
        tune(on)
        once()

    return under


def milli(value: float) -> float:
    """Seconds as milliseconds."""
    return value * 1e3
