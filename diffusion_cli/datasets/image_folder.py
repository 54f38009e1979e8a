"""A user's own images: a folder, or a .zip of one."""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from diffusion_cli.datasets import datasets
from diffusion_cli.datasets.decoding import Decoder, Fit, converted
from diffusion_cli.datasets.images import Images, image_spec
from diffusion_cli.datasets.parsing import FIRST, Report, decode, refusal
from diffusion_cli.datasets.sources import Entry, Source, source_of
from diffusion_cli.datasets.storage import build_once
from diffusion_cli.datasets.tables import Table, read_table, write_table
from diffusion_cli.errors import DataError
from diffusion_cli.paths import shown, typed
from diffusion_cli.settings import require

VERSION = 1  # of the decoding; a new one makes new cache entries


@datasets("image_folder")
class ImageFolder(Images):
    """Images from a folder, or a .zip of one: PNG, JPEG and WebP.

    The first folder level names the classes; images that lie in no folder are without
    labels; an outer folder around everything is looked through. Images are decoded once
    into a uint8 cache, found again by names, sizes, times of change and preprocessing.
    Rotation by EXIF is applied, transparency is laid on white, 16-bit levels are scaled
    to 8, CMYK, palettes and grey become RGB.

    No reference: the layout is the one of torchvision's ImageFolder.

    Args:
        path: The folder or the .zip.
        size: Width and height; null takes images that all have one size.
        fit: What to do with another size: `exact` refuses it, `crop` cuts the centre
            out, `resize` scales the shorter side and crops the longer one.
        channels: 3 for RGB, 1 for grey.
        labels: Serve the class folder as a label.
        flip: Mirror each image left to right with probability 1/2.
        bad: Broken files are an `error`, or are left out (`skip`).
        bad_limit: `skip` gives up above this number of broken files.
        cache: Folder for the decoded images.
    """

    def __init__(
        self,
        path: str,
        size: int | None = None,
        fit: Fit = "exact",
        channels: Literal[1, 3] = 3,
        labels: bool = True,
        flip: bool = False,
        bad: Literal["error", "skip"] = "error",
        bad_limit: int = 100,
        cache: str = "~/.cache/dcli",
    ) -> None:
        super().__init__(flip)
        require(size is None or size >= 1, "size", size, ">= 1, or null")
        fits = size is not None or fit == "exact"
        require(fits, "fit", fit, "exact where size is null")
        require(bad_limit >= 0, "bad_limit", bad_limit, ">= 0")
        self.path, self.cache = typed(path, "path"), typed(cache, "cache")
        self.size, self.fit, self.channels = size, fit, channels
        self.labels, self.bad_limit = labels, bad_limit if bad == "skip" else 0

    def read(self) -> Table:
        source = source_of(self.path)
        entries = source.entries()
        names, classes = _classes(entries, self.path) if self.labels else ((), None)
        wanted = (self.size, self.fit, self.channels, self.labels)
        self.fingerprint = _fingerprint(entries, wanted)
        entry = self.cache / f"image_folder-{self.fingerprint}"

        def build(folder: Path) -> None:
            report = Report()
            decoder = self._decoder(source, entries)
            write_table(folder, decode(source, entries, decoder, classes, report))
            (folder / "report.json").write_text(json.dumps(asdict(report)))

        build_once(entry, build)
        report = Report(**json.loads((entry / "report.json").read_text()))
        self._judge(report, len(entries))
        table = read_table(entry)
        self.spec = image_spec(table.pixels.shape[1:], names)
        return table

    def _decoder(self, source: Source, entries: Sequence[Entry]) -> Decoder:
        """Asks for `size`, or for the size of the first image that can be decoded."""
        if self.size is not None:
            return Decoder((self.size, self.size), self.fit, self.channels)
        probe = Decoder(None, self.fit, self.channels)
        sizes = (probe(source, entry).size for entry in entries)
        return probe._replace(size=next((size for size in sizes if all(size)), None))

    def _judge(self, report: Report, total: int) -> None:
        """Refuse too many broken files, and note what was done to the others."""
        bad = len(report.bad)
        if bad > self.bad_limit:
            raise refusal(report, total, self.path)
        if told := converted(report.modes, self.channels):
            self.notes += (told,)
        if bad:
            self.notes += (f"skipped {bad} broken images: {report.bad[0]}",)


def _classes(
    entries: Sequence[Entry], path: Path
) -> tuple[tuple[str, ...], list[int] | None]:
    """The names of the classes, and the class of every image; none if all lie flat."""
    parents = [entry.name.rpartition("/")[0] for entry in entries]
    outer = posixpath.commonpath(parents)
    inner = [parent[len(outer) :].lstrip("/").split("/")[0] for parent in parents]
    names = sorted(set(inner), key=os.fsencode)
    if names == [""]:
        return (), None
    if names[0] == "":
        flat = [
            entry.name for entry, name in zip(entries, inner, strict=True) if not name
        ]
        count = f"{len(flat)} of {len(entries)} images lie in no class folder"
        message = f"{path}: {count}: {', '.join(map(shown, flat[:FIRST]))}"
        raise DataError(message, "move them, or dataset.labels=false", "DATA-LABEL")
    number = {name: i for i, name in enumerate(names)}
    return tuple(map(shown, names)), [number[name] for name in inner]


def _fingerprint(entries: Sequence[Entry], wanted: tuple[object, ...]) -> str:
    digest = hashlib.sha256(repr((VERSION, *wanted)).encode())
    for entry in entries:
        digest.update(os.fsencode(f"{entry.name}\0{entry.size}\0{entry.stamp}\n"))
    return digest.hexdigest()[:16]
