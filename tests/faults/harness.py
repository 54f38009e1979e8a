"""Commands as copies of this process: torch is imported once, and faults are real.

Every test has a `Place` of its own. Whatever it starts has to be gone at its end, and
whatever was written has to lie in a run folder.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing.util
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import hydra  # noqa: F401  # before the fork
import pytest
import torch._dynamo  # three seconds, and a folder in TMPDIR
import torch.utils.tensorboard  # noqa: F401
from tiny import outcome

from diffusion_cli import cli, config
from diffusion_cli.commands import eval as evaluate  # noqa: F401
from diffusion_cli.commands import sample, train  # noqa: F401

config.roles()

TRAIN = (
    "train dataset=toy2d dataset.size=100 process=ddpm network=mlp network.width=16 "
    "network.depth=1 network.dropout=0.2 trainer.steps=12 trainer.batch=8 "
    "trainer.ema=[4] trainer.ema_ramp=null trainer.workers=0 every.log=1 every.save=4 "
    "every.preview=0 out=run device=cpu"
).split()
SAMPLE = "sample ckpt=run n=10 batch=4 steps=2 format=png device=cpu".split()
PATIENCE = 5.0  # seconds that a process may outlive its command
NOBODY = 65534


class Told(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str
    seconds: float


class Child:
    """A command in a session of its own."""

    def __init__(
        self,
        place: Path,
        words: tuple[str, ...],
        env: dict[str, str],
        before: Callable[[], Any] | None,
    ) -> None:
        number = len(list((place / "log").iterdir()))
        self.out, self.err = (place / "log" / f"{number}.{s}" for s in ("out", "err"))
        self.out.touch(0o666)
        self.err.touch(0o666)
        self.begun = time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            self._become(place, words, env, before)

    def _become(
        self,
        place: Path,
        words: tuple[str, ...],
        env: dict[str, str],
        before: Callable[[], Any] | None,
    ) -> None:
        code = 1
        try:
            os.setsid()
            for handle, path in ((1, self.out), (2, self.err)):
                os.dup2(os.open(path, os.O_WRONLY), handle)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            sys.stdout = open(1, "w", closefd=False)
            sys.stderr = open(2, "w", buffering=1, closefd=False)
            logging.getLogger().handlers.clear()  # pytest's
            os.chdir(place / "work")
            os.environ |= {
                "HOME": str(place / "home"),
                "TMPDIR": str(place / "tmp"),
                "DCLI_CACHE": str(place / "cache"),
                "DCLI_DATA": str(place / "data"),
                **env,
            }
            tempfile.tempdir = None
            sys.dont_write_bytecode = False  # as for most users
            if before:
                before()
            code = cli.main(list(words))
            if sys.stdout:
                sys.stdout.flush()
            multiprocessing.util._exit_function()  # as at the end of any program
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stderr.flush()
            os._exit(code)

    def until(self, pattern: str, seconds: float = 30) -> Child:
        """Wait for something on its stderr."""
        deadline = time.monotonic() + seconds
        while not re.search(pattern, self.err.read_text()):
            assert time.monotonic() < deadline, self.err.read_text()
            time.sleep(0.01)
        return self

    def send(self, number: int, to_all: bool = False) -> Child:
        """Send a signal to it, or to it and its workers."""
        (os.killpg if to_all else os.kill)(self.pid, number)
        return self

    def end(self, seconds: float = 60) -> Told:
        """How it ended; its messages are checked, and that nothing is left of it."""
        deadline = time.monotonic() + seconds
        while not (found := os.waitpid(self.pid, os.WNOHANG))[0]:
            if time.monotonic() > deadline:
                os.killpg(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                pytest.fail(f"still there after {seconds} s: {self.err.read_text()}")
            time.sleep(0.005)
        took = time.monotonic() - self.begun
        code = os.waitstatus_to_exitcode(found[1])
        told = Told(code, self.out.read_text(), self.err.read_text(), took)
        _well_said(told)
        while left := _session(self.pid):
            if time.monotonic() - self.begun - took > PATIENCE:
                pytest.fail(f"outlived its command: {list(left.values())}")
            time.sleep(0.02)
        return told


def _well_said(told: Told) -> None:
    """The shape of messages: no traceback, an error and a hint at the end."""
    if told.code == 1 or told.code < 0:
        return
    assert "Traceback" not in told.err, told.err
    lines = told.err.splitlines()
    errors = [
        i for i, line in enumerate(lines) if re.match(r"error(\[[A-Z-]+\])?: ", line)
    ]
    assert bool(errors) == (2 <= told.code <= 10), told.err
    if errors:
        assert len(lines) - errors[-1] <= 10, told.err
        assert lines[-1].startswith(("hint: ", "error")), told.err


def _session(leader: int) -> dict[int, str]:
    """The processes in a session: their command lines."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                state = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(state[3]) == leader and state[0] != "Z":
                    words = (entry / "cmdline").read_text().replace("\0", " ")
                    found[int(entry.name)] = words
    return found


class Place:
    """Folders that commands may see: `work` to stand in, `home`, `tmp`, and a log."""

    def __init__(self, root: Path) -> None:
        self.root, self.work = root, root / "work"
        self.run = self.work / "run"
        self.own = {"run", "runs"}  # in `work`; a test adds what it writes itself
        self.children: list[Child] = []
        for name in ("work", "home", "tmp", "log"):
            (root / name).mkdir()
        root.chmod(0o755)

    def start(
        self,
        *words: str,
        fault: str = "",
        before: Callable[[], Any] | None = None,
        **env: str,
    ) -> Child:
        """Start a command."""
        child = Child(self.root, words, {"DCLI_FAULT": fault, **env}, before)
        self.children.append(child)
        return child

    def dcli(self, *words: str, seconds: float = 60, **how: Any) -> Told:
        """Run a command."""
        return self.start(*words, **how).end(seconds)

    def put(self, source: Path, name: str = "run") -> Path:
        """A copy of a run."""
        shutil.copytree(source, self.work / name)
        return self.work / name

    def file(self, name: str, text: str) -> Path:
        """A file that is the test's own."""
        path = self.work / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        self.own.add(Path(name).parts[0])
        return path

    def strange(self) -> list[str]:
        """What lies where no command may write."""
        found = [path.name for path in self.work.iterdir() if path.name not in self.own]
        for name in ("home", "tmp"):
            found += [f"{name}/{path.name}" for path in (self.root / name).iterdir()]
        return found


@pytest.fixture
def place() -> Iterator[Place]:
    """A place that has to be tidy at the end."""
    root = Path(tempfile.mkdtemp(prefix="dcli-fault-"))
    there = Place(root)
    try:
        yield there
        strange = there.strange()
        assert not strange, f"no run folder: {strange}"
    finally:
        for child in there.children:  # of a test that failed
            for pid in _session(child.pid):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(root, ignore_errors=True)


Result = tuple[dict[str, str], list[dict[str, Any]]]


@cache
def trained(*words: str) -> Path:
    """A run that nobody disturbed; made once."""
    root = Path(tempfile.mkdtemp(prefix="dcli-control-"))
    there = Place(root)
    told = there.dcli(*TRAIN, *words)
    assert told.code == 0, told.err
    _made.append(root)
    return there.run


_made: list[Path] = []


@pytest.fixture(scope="session", autouse=True)
def controls() -> Iterator[None]:
    """The undisturbed runs go at the end."""
    yield
    for root in _made:
        shutil.rmtree(root, ignore_errors=True)


def control(*words: str) -> Result:
    """Weights and metrics of the run that nobody disturbed."""
    return outcome(trained(*words))


def says(told: Told, pattern: str) -> None:
    """Something stands on its stderr."""
    assert re.search(pattern, told.err), told.err
