"""Where image files lie: a folder or a .zip of one, never unpacked to disk."""

from __future__ import annotations

import os
import stat
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from diffusion_cli.errors import DataError
from diffusion_cli.paths import shown

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp")
LARGEST = 512 * 2**20  # bytes of one unpacked file; a larger one is not a picture


class Entry(NamedTuple):
    """One image file: its path below the source, and what shows that it changed."""

    name: str
    size: int
    stamp: int  # time of the last change in ns; in a zip, the CRC-32


class Source(ABC):
    """Image files in the order of their names."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def entries(self) -> list[Entry]:
        """All image files, sorted; at least one (`DataError`)."""
        found: list[Entry] = []
        others: list[Entry] = []
        for entry in self._walk():
            hidden = any(p.startswith((".", "__MACOSX")) for p in entry.name.split("/"))
            if not hidden:
                image = entry.name.lower().endswith(EXTENSIONS)
                (found if image else others).append(entry)
        if not found:
            first = ", ".join(shown(entry.name) for entry in sorted(others)[:3])
            seen = f"only files such as {first}" if others else "no files at all"
            message = f"{self.path}: no images ({', '.join(EXTENSIONS)}); {seen}"
            raise DataError(message, "dataset.path=<folder or .zip>", "DATA-EMPTY")
        return sorted(found, key=lambda entry: os.fsencode(entry.name))

    @abstractmethod
    def open(self, entry: Entry) -> IO[bytes]:
        """The bytes of one file."""

    @abstractmethod
    def _walk(self) -> Iterator[Entry]:
        """All files, in any order."""


class Folder(Source):
    """A folder on disk; links are followed, each folder is entered once."""

    def open(self, entry: Entry) -> IO[bytes]:
        return (self.path / entry.name).open("rb")

    def _walk(self) -> Iterator[Entry]:
        entered: set[tuple[int, int]] = set()
        for folder, inner, names in os.walk(self.path, followlinks=True):
            here = os.stat(folder)
            if (here.st_dev, here.st_ino) in entered:  # a link back up
                inner.clear()
                continue
            entered.add((here.st_dev, here.st_ino))
            inner.sort()
            for name in names:
                path = Path(folder, name)
                try:
                    info = path.stat()
                except OSError:  # a dangling link: its turn to fail comes when read
                    info = path.lstat()
                if stat.S_ISREG(info.st_mode) or stat.S_ISLNK(info.st_mode):
                    below = path.relative_to(self.path).as_posix()
                    yield Entry(below, info.st_size, info.st_mtime_ns)


class Archive(Source):
    """A .zip file; members are read in memory, within `LARGEST`."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError) as error:
            message = f"{path}: not a readable .zip: {error}"
            raise DataError(message, "", "DATA-ZIP") from error

    def open(self, entry: Entry) -> IO[bytes]:
        if entry.size > LARGEST:
            raise ValueError(f"unpacks to {entry.size} bytes, more than {LARGEST}")
        return BytesIO(self._zip.read(entry.name))

    def _walk(self) -> Iterator[Entry]:
        for member in self._zip.infolist():
            path = PurePosixPath(member.filename)
            if path.is_absolute() or ".." in path.parts:
                where = f"{self.path}: member {shown(member.filename)}"
                raise DataError(f"{where} points outside the archive", "", "DATA-ZIP")
            if not member.is_dir():
                yield Entry(member.filename, member.file_size, member.CRC)


def source_of(path: Path) -> Source:
    """The source at `path` (`DataError` if there is none)."""
    if path.is_dir():
        return Folder(path)
    if path.is_file():
        return Archive(path)
    message = f"dataset.path: {shown(str(path))} does not exist"
    raise DataError(message, "dataset.path=<folder or .zip>", "DATA-PATH")
