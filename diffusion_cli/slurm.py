"""A job of SLURM that was asked to stop: who saved goes back into the queue."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
from collections.abc import Callable
from typing import Any

_log = logging.getLogger(__name__)
Handler = Callable[[int, Any], Any]


def hand_back(number: int, theirs: Handler | None) -> None:
    """After a save: requeue this job if it was preempted, not if it was cancelled.

    A job that SLURM preempts or that nears its limit is still RUNNING; one that was
    cancelled or is over its limit is not. Ctrl-C never requeues.

    Args:
        number: The signal that asked for the stop.
        theirs: submitit's handler, which counts the time-outs; it does the rest.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if job is None or number == signal.SIGINT or not _first():
        return
    told = _ask(["scontrol", "show", "job", job])
    if "JobState=RUNNING" not in told or "Requeue=1" not in told:
        return
    if theirs is not None:
        theirs(number, None)
    elif "BatchFlag=1" in told:
        _log.warning("requeued: job %s", _name(told, job))
        _ask(["scontrol", "requeue", _name(told, job)])


def _first() -> bool:
    """Whether this process speaks for its job: the first task, no child of one."""
    first = os.environ.get("SLURM_PROCID", "0") == "0"
    return first and "DCLI_STORE" not in os.environ


def _name(told: str, job: str) -> str:
    """`12_3` for an element of an array: its own number means the whole array."""
    array = re.search(r"ArrayJobId=(\d+) ArrayTaskId=(\d+)\b", told)
    return f"{array[1]}_{array[2]}" if array else job


def _ask(words: list[str]) -> str:
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=30).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        _log.warning("%s: %s", " ".join(words), error)
        return ""
