"""Files from the network: fetched once, whole, with the right hash, or not at all."""

from __future__ import annotations

import hashlib
import os
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from http.client import HTTPException
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, TypeVar
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from filelock import FileLock
from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_exponential
from tqdm import tqdm

from diffusion_cli import failpoints
from diffusion_cli.datasets.storage import writing
from diffusion_cli.errors import DataError, EnvironmentFault

PATIENCE = 10.0  # seconds without a byte after which the network counts as absent
ATTEMPTS = 8
CHUNK = 2**18  # bytes
NETWORK = (URLError, HTTPException, ConnectionError, TimeoutError, ssl.SSLError)

T = TypeVar("T")


class Remote(NamedTuple):
    """A published file: where it may be had, and what it must be."""

    name: str
    urls: tuple[str, ...]
    hash: str
    kind: str = "md5"
    size: int | None = None  # bytes

    @property
    def what(self) -> str:
        """How a person tells the right file."""
        size = f", {self.size:,} bytes" if self.size else ""
        return f"{self.name} ({self.kind} {self.hash}{size})"


def fetch(
    remote: Remote,
    folder: Path,
    where: str = "dataset",
    place: str = "dataset.root=...",
    otherwise: str = "",
    beside: Sequence[Remote] = (),
) -> Path:
    """`folder/name`, downloaded if it is not there; its hash is checked in any case.

    The bytes grow in a hidden `.part` file, which the next attempt or the next command
    continues. Only one process downloads; the others wait for it. Progress is a bar on
    the terminal. Without a network: `EnvironmentFault`, with what to put where.

    Args:
        remote: The file.
        folder: Where it belongs.
        where: The key of the config that asks for it.
        place: The key that names another folder.
        otherwise: What else to do without a network.
        beside: Other files that will be asked for; without a network they are told too.
    """
    path = folder / remote.name
    manual = f"put {remote.what} into {folder}"
    hint = f"{manual}, or choose a writable folder with {place}"
    missing = [remote, *(one for one in beside if not (folder / one.name).exists())]
    offline = f"put {' and '.join(one.what for one in missing)} into {folder}"
    offline = f"{offline}, or {otherwise}" if otherwise else offline
    with writing(folder, hint), FileLock(folder / f".{remote.name}.lock"):
        if not path.exists():
            part = folder / f".{remote.name}.part"
            _Download(remote, part, where, offline).run()
            _check(part, remote, f"{manual} by hand", discard=True)
            failpoints.hit("download.rename")
            os.replace(part, path)
        else:
            _check(path, remote, f"delete {path}")
    return path


def _check(path: Path, remote: Remote, hint: str, discard: bool = False) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, remote.kind).hexdigest()
    if found != remote.hash:
        size = path.stat().st_size
        if discard:
            path.unlink()
        kind = remote.kind
        what = f"{size} bytes with {kind} {found}, expected {kind} {remote.hash}"
        raise DataError(f"{path.parent / remote.name}: {what}", hint, "DATA-HASH")


class _Download:
    """Attempts over all mirrors, until the file is whole or nothing more is heard."""

    def __init__(self, remote: Remote, part: Path, where: str, manual: str) -> None:
        self.remote, self.part = remote, part
        self.where, self.manual = where, manual
        self.heard = time.monotonic()

    def run(self) -> None:
        retrying = Retrying(
            stop=self._hopeless,
            wait=wait_exponential(multiplier=0.25, max=2),
            retry=retry_if_exception_type(NETWORK),
            reraise=True,
        )
        try:
            retrying(self._attempt)
        except NETWORK as error:
            what = f"cannot download {self.remote.urls[0]}: {error}"
            raise EnvironmentFault(
                f"{self.where}: {what}", self.manual, "OFFLINE"
            ) from error

    def _hopeless(self, state: RetryCallState) -> bool:
        silent = time.monotonic() - self.heard > PATIENCE
        return silent or state.attempt_number >= ATTEMPTS

    def _attempt(self) -> None:
        for number, url in enumerate(self.remote.urls, 1):
            try:
                return self._continue(url)
            except NETWORK:
                if number == len(self.remote.urls):
                    raise
        return None

    def _continue(self, url: str) -> None:
        have = self.part.stat().st_size if self.part.exists() else 0
        request = Request(url, headers={"Range": f"bytes={have}-"} if have else {})
        with (
            self._open(request) as reply,
            self.part.open("ab" if reply.status == 206 else "wb") as file,
        ):
            total = file.tell() + int(reply.headers.get("Content-Length", 0))
            with tqdm(
                desc=self.remote.name,
                total=total,
                initial=file.tell(),
                unit="B",
                unit_scale=True,
                disable=None,  # silent where stderr is no terminal
            ) as bar:
                while chunk := reply.read(CHUNK):
                    self.heard = time.monotonic()
                    file.write(chunk)
                    failpoints.hit("download.chunk")
                    bar.update(len(chunk))
            if file.tell() < total:
                raise ConnectionError(f"the connection broke at byte {file.tell()}")

    def _open(self, request: Request) -> Any:
        left = max(1.0, self.heard + PATIENCE - time.monotonic())
        try:
            return _within(left, lambda: urlopen(request, timeout=PATIENCE))
        except HTTPError as error:
            if error.code == 416:  # the part is as long as the file, or longer
                self.part.unlink()
            raise


def _within(limit: float, call: Callable[[], T]) -> T:
    """The result of `call`, or `TimeoutError`: name look-ups know no time limit."""
    box: SimpleQueue[tuple[T | None, Exception | None]] = SimpleQueue()

    def work() -> None:
        try:
            box.put((call(), None))
        except Exception as error:
            box.put((None, error))

    threading.Thread(target=work, daemon=True).start()
    try:
        result, error = box.get(timeout=limit)
    except Empty:
        raise TimeoutError(f"no answer in {limit:.0f} s") from None
    if error:
        raise error
    return result  # type: ignore[return-value]  # no error: there is a result
