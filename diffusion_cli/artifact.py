"""A folder of hashed files that exists whole or not at all.

Staged beside its place as `.tmp-<name>`; every file is flushed to the disk, then
`manifest.json` with the size and sha256 of each, then the folder; then it is renamed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt

from diffusion_cli import failpoints
from diffusion_cli.errors import CheckpointError, StorageError

_log = logging.getLogger(__name__)
_LARGEST_MANIFEST = 8 << 20
_DEEPEST_JSON = 32
_FULL = (errno.ENOSPC, errno.EFBIG)
_PASSING = (errno.EIO, errno.EDQUOT)  # may go away: tried again
_NOWHERE = (errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP)
_FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM)
_ATTEMPTS = 4
_HASHING = 4  # files hashed at a time; hashes leave the interpreter free

T = TypeVar("T")
Content = Callable[[], Iterable[bytes | memoryview]]


def write(target: Path, files: Mapping[str, Content], about: dict[str, Any]) -> None:
    """Write a folder; `about` and the hashes become its manifest."""
    staged = target.with_name(f".tmp-{target.name}")
    with storage(target, lambda: _size(files)):
        failpoints.hit("ckpt.stage")
        _remove(staged)
        staged.mkdir(parents=True)
        try:
            entries = {n: _patiently(_write, staged / n, files[n]) for n in files}
            failpoints.hit("ckpt.manifest")
            text = json.dumps({**about, "files": entries}, indent=1)
            _patiently(_write, staged / "manifest.json", lambda: [text.encode()])
            _patiently(_sync, staged)
            failpoints.hit("ckpt.rename")
            _swap(staged, target)
        except Exception:
            _remove(staged)
            raise
        failpoints.hit("ckpt.dirsync")
        _patiently(_sync, target.parent)


def verify(folder: Path) -> dict[str, Any]:
    """The manifest of a folder whose every file is as it was written."""
    path = _inside(folder, "manifest.json")
    if path.stat().st_size > _LARGEST_MANIFEST:
        raise broken(folder, "manifest.json is larger than 8 MB")
    manifest = parse(path)
    files = manifest.get("files")
    if not isinstance(files, dict):
        raise broken(folder, "manifest.json lists no files")
    sizes = {name: _measure(folder, name, files[name]) for name in files}
    # the largest first: no processor is left with it when all others are done
    order = sorted(files, key=lambda name: -sizes[name])
    with ThreadPoolExecutor(min(_HASHING, os.cpu_count() or 1)) as pool:
        for _ in pool.map(lambda name: _verify(folder, name, files[name]), order):
            pass
    return manifest


def standing(folder: Path) -> bool:
    """Whether every file of a folder is there, at its size; quick."""
    try:
        files = parse(_inside(folder, "manifest.json"))["files"]
        return all(
            _inside(folder, name).stat().st_size == entry["size"]
            for name, entry in files.items()
        )
    except (CheckpointError, KeyError, TypeError, AttributeError):
        return False


def parse(path: Path) -> dict[str, Any]:
    """A JSON object from a file somebody else may have written."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise broken(path.parent, f"{path.name} is not JSON: {error}") from error
    if not isinstance(value, dict) or _depth(value) > _DEEPEST_JSON:
        raise broken(path.parent, f"{path.name} is not an object of plain values")
    return value


def broken(folder: Path, what: str) -> CheckpointError:
    """The error for a folder that cannot be read."""
    hint = "name another checkpoint"
    return CheckpointError(f"{folder}: {what}", hint, "CKPT-CORRUPT")


@contextmanager
def storage(place: Path, needed: Callable[[], int] | None = None) -> Iterator[None]:
    """Turn what the operating system says into a `StorageError`.

    Args:
        place: What is being written.
        needed: Its size in bytes, asked for when the disk is full.
    """
    try:
        yield
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, "error")
        what = f"{place}: {error.strerror or error} ({name})"
        if error.errno in _FULL:
            older = len(list(place.parent.glob("step_*")))
            size = f"{_megabytes(needed())} needed, " if needed else ""
            what += f"; {size}{_free(place)} free, older checkpoints here: {older}"
            hint = "free some space and run again"
            raise StorageError(what, hint, "DISK-FULL") from error
        if error.errno in _FORBIDDEN:
            raise StorageError(what, "out=<a folder you own>", "READONLY") from error
        if error.errno in _NOWHERE:
            hint = "out=<a folder that can be made>"
            raise StorageError(what, hint, "IO") from error
        if error.errno == errno.EXDEV:
            what = f"{place}: staging and target are on different filesystems"
        raise StorageError(what, "run again when the disk is well", "IO") from error


def _patiently(act: Callable[..., T], *args: Any) -> T:
    """Do something again after a fault of the disk that may pass."""
    again = Retrying(
        retry=retry_if_exception(_may_pass),
        stop=stop_after_attempt(_ATTEMPTS),
        before_sleep=_announce,
        reraise=True,
    )
    return again(act, *args)


def _write(path: Path, content: Content) -> dict[str, Any]:
    """Write one file and flush it to the disk; its size and hash."""
    point = f"ckpt.write:{path.name}"
    fatal, size, sha = failpoints.offset(point), 0, hashlib.sha256()
    with path.open("wb") as file:
        for part in content():
            if fatal is not None and size + len(part) > fatal:
                file.write(part[: fatal - size])
                file.flush()
                failpoints.strike(point)
                fatal = None
            file.write(part)
            sha.update(part)
            size += len(part)
        file.flush()
        failpoints.hit("ckpt.fsync")
        os.fsync(file.fileno())
    return {"size": size, "sha256": sha.hexdigest()}


def _may_pass(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in _PASSING


def _announce(state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    _log.warning("retry %d/%d: %s", state.attempt_number, _ATTEMPTS - 1, error)


def _swap(staged: Path, target: Path) -> None:
    """Put the staged folder in its place, whatever lies there."""
    if target.exists():
        _log.warning("replacing %s", target.name)
        aside = target.with_name(f".old-{target.name}")
        _remove(aside)
        target.replace(aside)
        staged.replace(target)
        _remove(aside)
    else:
        staged.replace(target)


def _measure(folder: Path, name: str, entry: Any) -> int:
    """The size of a member, which is that in the manifest."""
    path = _inside(folder, name)
    if not isinstance(entry, dict) or not isinstance(entry.get("size"), int):
        raise broken(folder, f"manifest.json says nothing about {name}")
    size, expected = path.stat().st_size, entry["size"]
    if size != expected:
        how = "truncated" if size < expected else "too long"
        what = f"{name} {how}: expected {expected} bytes, have {size}"
        raise broken(folder, what)
    return size


def _verify(folder: Path, name: str, entry: dict[str, Any]) -> None:
    """Check the hash of a member."""
    with (folder / name).open("rb") as file:
        sha = hashlib.file_digest(file, "sha256")
    if sha.hexdigest() != entry.get("sha256"):
        raise broken(folder, f"{name}: sha256 mismatch")


def _inside(folder: Path, name: str) -> Path:
    """A member of a folder: a plain file with a plain name, no link to elsewhere."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,254}", name):
        raise broken(folder, f"{name[:50]!r} is not a file name")
    path = folder / name
    if path.is_symlink() or not path.is_file():
        raise broken(folder, f"{name} is missing")
    return path


def _depth(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value
    nested = [x for x in inner if isinstance(x, dict | list)]
    return 1 + max(map(_depth, nested), default=0)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _free(place: Path) -> str:
    while not place.exists():
        place = place.parent
    return _megabytes(shutil.disk_usage(place).free)


def _size(files: Mapping[str, Content]) -> int:
    return sum(len(part) for content in files.values() for part in content())


def _megabytes(size: int) -> str:
    return f"{size / 2**20:.1f} MB"
