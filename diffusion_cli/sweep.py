"""A sweep as it stands: which jobs it has, and how each of them ended.

`runs/sweeps/<verb>-<hash of the command>/jobs/00000.json`, a file per job, written by
the process that runs it, wherever that is. Free of torch and Hydra.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from diffusion_cli.artifact import storage
from diffusion_cli.ranks import standing

HOME = Path("runs/sweeps")
ENDED = ("done", "failed")
_FILE = re.compile(r"([0-9]+)\.json")
_GRAIN = 2.0  # seconds in which a folder may change twice and say one time
_HYDRA = re.compile(r"\+*(hydra[./]|tries=)")  # how jobs are launched, not which


def folder(verb: str, words: Sequence[str]) -> Path:
    """Where the sweep of a command lies: the same for every way to launch it."""
    kept = [word for word in words if not _HYDRA.match(word)]
    tag = hashlib.sha256(json.dumps(kept).encode()).hexdigest()[:8]
    return HOME / f"{verb}-{tag}"


class Job:
    """One job of a sweep, and its file.

    Args:
        home: The folder of the sweep.
        number: Which of its jobs, counted from 0.
    """

    def __init__(self, home: Path, number: int) -> None:
        self.home, self.number = home, number
        self.path = home / "jobs" / f"{number:05d}.json"

    @property
    def told(self) -> dict[str, Any]:
        """What its file says; empty before its first start."""
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    @property
    def status(self) -> str:
        """`waiting`, `running`, `stopped`, `done`, `failed`."""
        return str(self.told.get("status", "waiting"))

    @property
    def value(self) -> float:
        """What its command returned; NaN if nothing."""
        value = self.told.get("value")
        return float("nan") if value is None else float(value)

    def spent(self, tries: int) -> bool:
        """Whether it failed as often as it may."""
        told = self.told
        return told.get("status") == "failed" and told.get("tries", 0) >= tries

    def wait(self) -> None:
        """It is to run once more."""
        if told := self.told:
            self._write({**told, "status": "waiting"})

    def begin(self, overrides: Sequence[str]) -> None:
        """It runs, here and now."""
        tries = self.told.get("tries", 0)
        where = {"pid": os.getpid(), "host": socket.gethostname()}
        if "SLURM_JOB_ID" in os.environ:
            where["slurm"] = os.environ["SLURM_JOB_ID"]
        self._write(
            {"overrides": list(overrides), "tries": tries + 1, "started": time.time()}
            | {"status": "running", **where}
        )

    def end(self, status: str, code: int, said: str, value: float | None) -> None:
        """It is over; only a failure counts as a try."""
        told = self.told
        tries = told["tries"] - (status != "failed")
        ended = {"status": status, "code": code, "error": said, "value": value}
        self._write({**told, **ended, "tries": tries, "ended": time.time()})

    def _write(self, values: dict[str, Any]) -> None:
        place = standing()
        if place is not None and place.rank:
            return  # the first rank writes
        with storage(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            part = self.path.with_name(f".{self.path.name}.{os.getpid()}.part")
            part.write_text(json.dumps(values), encoding="utf-8")
            part.replace(self.path)

    def line(self) -> str:
        """How it stands, for people."""
        told = self.told
        how = told.get("status", "waiting")
        if how == "failed":
            how = f"exit {told.get('code', '?')}"
        return f"job {self.number}: {how}: {plain(told.get('overrides', ()))}"


def plain(overrides: Iterable[str]) -> str:
    """Overrides as a person types them."""
    return " ".join(word.lstrip("+") for word in overrides)


def current() -> Job | None:
    """The job that this process, or the one that started it, is or runs."""
    home = os.environ.get("DCLI_SWEEP")
    return Job(Path(home), int(os.environ["DCLI_JOB"])) if home else None


@contextmanager
def known_as(job: Job | None) -> Iterator[None]:
    """Let this process, and those that it starts, know which job they are."""
    before = {key: os.environ.get(key) for key in ("DCLI_SWEEP", "DCLI_JOB")}
    if job is not None:
        os.environ["DCLI_SWEEP"] = str(job.home.absolute())
        os.environ["DCLI_JOB"] = str(job.number)
    try:
        yield
    finally:
        for key, value in before.items():
            os.environ.pop(key, None)
            if value is not None:
                os.environ[key] = value


def sources() -> str:
    """A hash of the code of this package."""
    found = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        found.update(path.read_bytes())
    return found.hexdigest()[:16]


def outdated() -> bool:
    """Whether the code has changed since this job was submitted."""
    then = os.environ.get("DCLI_SOURCES")
    return then is not None and then != sources()


def jobs(home: Path) -> list[Job]:
    """All that have begun, in their order."""
    names = (_FILE.fullmatch(path.name) for path in (home / "jobs").glob("*.json"))
    return [Job(home, number) for number in sorted(int(n[1]) for n in names if n)]


class News:
    """What the jobs of a sweep have said since the last look.

    A file is read when it has changed, and files are looked for when their folder has:
    jobs that only wait or run cost nothing, however many there are.

    Args:
        home: The folder of the sweep.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self._seen: dict[int, tuple[int, int]] = {}
        self._changed, self._since, self._looked = -1, 0.0, 0.0

    def look(self) -> Iterator[tuple[Job, dict[str, Any]]]:
        """Jobs whose files are new or changed, and what these say."""
        now, marks = time.monotonic(), dict[int, tuple[int, int]]()
        try:
            changed = (self.home / "jobs").stat().st_mtime_ns
            if changed != self._changed:
                self._changed, self._since = changed, now
            elif self._looked > self._since + _GRAIN:
                return
            with os.scandir(self.home / "jobs") as files:
                for file in files:
                    if name := _FILE.fullmatch(file.name):
                        with suppress(OSError):  # a link to nothing, or just gone
                            about = file.stat()
                            marks[int(name[1])] = about.st_ino, about.st_mtime_ns
        except OSError:
            return  # no job has begun
        self._looked = now
        for number in sorted(n for n in marks if marks[n] != self._seen.get(n)):
            job = Job(self.home, number)
            if told := job.told:
                self._seen[number] = marks[number]
                yield job, told
            else:
                self._changed = -1  # it could not be read: once more


@contextmanager
def watched(home: Path, tell: Callable[[str], None]) -> Iterator[None]:
    """Tell meanwhile of every job that fails in another process, as it happens."""
    over, begun = threading.Event(), time.time()
    news, seen = News(home), set[int]()

    def look() -> None:
        for job, told in news.look():
            ended, theirs = told.get("ended"), told.get("pid") != os.getpid()
            fresh = isinstance(ended, float) and ended > begun and theirs
            if fresh and told.get("status") == "failed" and job.number not in seen:
                seen.add(job.number)
                tell(f"{job.line()}\n  {told.get('error', '')}")

    def loop() -> None:
        while not over.wait(1.0):
            look()

    watcher = threading.Thread(target=loop, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
        look()
