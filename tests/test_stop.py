"""Stopping: who hears a signal, and when."""

from __future__ import annotations

import os
import signal
import time

import pytest

from diffusion_cli.errors import Stopped
from diffusion_cli.stop import Stop


def test_a_signal_asks() -> None:
    with Stop() as stop:
        stop.begin()
        assert not stop.requested
        os.kill(os.getpid(), signal.SIGUSR1)
        assert stop.requested
        with pytest.raises(Stopped, match="SIGUSR1: saved") as caught:
            stop.end("saved")
    assert caught.value.exit_code == 138
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL


def test_the_budget_is_no_error() -> None:
    with Stop(seconds=0.0) as stop:
        stop.begin()
        assert stop.late and stop.requested
        stop.end("nobody asked")


def test_a_worker_outlives_a_signal_to_the_group() -> None:
    with Stop() as stop:
        stop.begin()
        ready, tell = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.write(tell, b".")
                time.sleep(0.2)  # cut short by the signal's handler, then resumed
                os.write(tell, b".")
                time.sleep(60)
            except SystemExit as end:
                os._exit(int(str(end.code)))
            os._exit(0)
        os.read(ready, 1)
        os.kill(pid, signal.SIGTERM)
        assert os.read(ready, 1) == b"."
        os.kill(pid, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 128 + signal.SIGTERM
        assert not stop.requested
