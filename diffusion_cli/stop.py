"""Stopping in good order: signals and the time budget."""

from __future__ import annotations

import logging
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from diffusion_cli import slurm
from diffusion_cli.errors import Stopped

_log = logging.getLogger(__name__)
_LATE = 1  # the budget is spent; below the number of any signal here
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
_DEFAULTS = (signal.SIG_DFL, signal.default_int_handler)


class Stop:
    """While entered, a signal asks for a stop instead of ending the program.

    Before `begin` there is nothing to save and a signal raises `Stopped` at once. After
    it, `requested` turns true, the caller finishes its step, saves and calls `end`. A
    second Ctrl-C raises `KeyboardInterrupt`. The handler that was there before (a
    scheduler's, which requeues the job) is called on leaving, whether or not the save
    succeeded; in a job of SLURM, only if it was preempted.

    Args:
        seconds: Time budget, counted from the construction.
    """

    def __init__(self, seconds: float = math.inf) -> None:
        self.deadline = time.monotonic() + seconds
        self.number: int | None = None
        self.note = ""  # what a person should know who asks for a stop
        self._pid = os.getpid()
        self._begun = False
        self._previous: dict[int, Any] = {}

    def begin(self) -> None:
        """From here on there is something to save."""
        self._begun = True

    @property
    def late(self) -> bool:
        """Whether the time budget is spent."""
        return time.monotonic() >= self.deadline

    @property
    def requested(self) -> bool:
        """Whether to finish the step, save and leave."""
        return self.number is not None or self.late

    def agreed(self, agree: Callable[[int], int]) -> bool:
        """Whether to leave, the same on every rank; `agree` gives the largest wish."""
        asked = agree(self.number or (_LATE if self.late else 0))
        if asked > _LATE:
            self.number = asked
        return asked > 0

    def end(self, message: str) -> None:
        """Raise `Stopped` if a signal asked for it; a spent budget is no error."""
        if self.number is not None:
            raise Stopped(self.number, f"{_name(self.number)}: {message}")

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self.number is None or not self._previous:
            return
        if "SLURM_JOB_ID" in os.environ:
            theirs = self._previous.get(signal.SIGUSR2)
            slurm.hand_back(self.number, theirs if _foreign(theirs) else None)
        elif _foreign(previous := self._previous[self.number]):
            previous(self.number, None)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            # a loader's worker: a signal to the whole group is its parent's affair, a
            # second one is meant for the worker, which then tidies up
            signal.signal(number, _end_worker)
            return
        again = self.number is not None
        self.number = self.number or number
        if again and number == signal.SIGINT:
            _log.warning("aborted without saving")
            raise KeyboardInterrupt
        if not self._begun:
            _leave(number, frame)
        if not again:
            tail = ", press again to abort" if number == signal.SIGINT else ""
            tail += f" ({self.note})" if self.note else ""
            _log.warning("%s: stopping after this step%s", _name(number), tail)


def _name(number: int) -> str:
    return signal.Signals(number).name


def _foreign(handler: Any) -> bool:
    """Whether a handler is somebody's own: neither Python's nor the system's."""
    ours: tuple[Any, ...] = (signal.SIG_IGN, _leave, *_DEFAULTS)
    return callable(handler) and handler not in ours


@contextmanager
def nothing_to_save() -> Iterator[None]:
    """Until a command has something to save, a signal ends it with `Stopped`.

    Handlers of others stay, and so do ignored signals.
    """
    mine: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        mine = {n: signal.getsignal(n) for n in _SIGNALS}
    mine = {n: handler for n, handler in mine.items() if handler in _DEFAULTS}
    for number in mine:
        signal.signal(number, _leave)
    try:
        yield
    finally:
        for number, handler in mine.items():
            signal.signal(number, handler)


def _end_worker(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _leave(number: int, frame: FrameType | None) -> None:
    raise Stopped(number, f"{_name(number)}: nothing to save")
