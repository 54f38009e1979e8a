"""A folder of samples: chunks as they were drawn, and files made from them.

`chunks/000000.npy` is the truth, whole or absent; pictures and arrays are made from it.
A larger `n` or another format therefore draws only what is not there yet.
"""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffusion_cli import failpoints
from diffusion_cli.artifact import storage
from diffusion_cli.core import Spec
from diffusion_cli.datasets import Dataset
from diffusion_cli.datasets.storage import staged
from diffusion_cli.errors import ConfigError, DataError

_log = logging.getLogger(__name__)
SHOWN = 256  # samples in a grid, at most; points of a scatter plot come from all
TILES = 16  # samples in a film or a strip of images
FRAMES, STRIP = 40, 8  # states in a film, and side by side in a strip


class Gallery:
    """The samples of one request, under its folder.

    Args:
        folder: Made if it is missing.
        kind: The data set whose `save` and `picture` turn samples into files.
        spec: What a sample looks like.
        batch: Samples per chunk.
        request: All that decides the bits, as JSON reads it back; another request in
            the same folder is a `ConfigError`.
    """

    def __init__(
        self,
        folder: Path,
        kind: type[Dataset],
        spec: Spec,
        batch: int,
        request: Mapping[str, Any],
    ) -> None:
        self.folder, self.kind, self.spec, self.batch = folder, kind, spec, batch
        self.request = request
        place, asked = folder / "chunks" / "request.json", json.dumps(request)
        if place.exists():
            held = self._read(place)
            if not held:
                message = f"{place} is damaged: which samples these are is not known"
                raise DataError(message, f"delete {folder}", "DATA-BAD")
            other = [key for key in request if held.get(key) != request[key]]
            if other:
                message = f"out: {folder} holds samples of another {', '.join(other)}"
                raise ConfigError(message, "out=<another folder>, or leave out out")
            return
        with storage(folder):
            (folder / "chunks").mkdir(parents=True, exist_ok=True)
        self._write(place, asked.encode())

    def beside(self, name: str) -> Gallery:
        """Other samples of the same request, in a folder in this one."""
        own = self.folder / name
        return Gallery(own, self.kind, self.spec, self.batch, self.request)

    def missing(self, n: int) -> list[int]:
        """Numbers of the chunks still to be drawn for `n` samples."""
        count = range(-(-n // self.batch))
        stems = (path.stem for path in (self.folder / "chunks").glob("*.npy"))
        there = {int(stem) for stem in stems if stem.isdecimal()}
        whole = {chunk for chunk in there if chunk in count and self._whole(chunk)}
        return [chunk for chunk in count if chunk not in whole]

    def keep(self, chunk: int, x: Tensor) -> None:
        """Store a whole chunk, (batch, ...)."""
        failpoints.hit("sample.chunk", chunk)
        buffer = io.BytesIO()
        np.save(buffer, x.detach().cpu().numpy())
        self._write(self._chunk(chunk), buffer.getvalue())

    def samples(self, n: int) -> Iterator[Tensor]:
        """The first `n` samples, chunk by chunk."""
        for chunk in range(-(-n // self.batch)):
            array = np.load(self._chunk(chunk), allow_pickle=False)
            yield torch.from_numpy(array)[: n - chunk * self.batch]

    def export(self, n: int, formats: Sequence[str], labels: Tensor | None) -> None:
        """Write `n` samples as single files (png), one array (npz), one picture."""
        with storage(self.folder):
            if "png" in formats:
                self._files(n)
            if "npz" in formats:
                arrays = {"samples": torch.cat(list(self.samples(n))).numpy()}
                if labels is not None:
                    arrays["labels"] = labels[:n].numpy()
                buffer = io.BytesIO()
                np.savez(buffer, **arrays)  # type: ignore[arg-type]  # of arrays
                self._write(self.folder / "samples.npz", buffer.getvalue())
            if "grid" in formats:
                shown = n if self.spec.points else min(n, SHOWN)
                self._picture("grid.png", torch.cat(list(self.samples(shown))))

    def film(self, states: Sequence[Tensor], form: str) -> None:
        """A moving picture (gif) or a row of pictures (strip) of the states."""
        count = FRAMES if form == "gif" else STRIP
        at = torch.linspace(0, len(states) - 1, min(count, len(states))).round().long()
        pictures = [self.kind.picture(_scaled(states[i]), self.spec) for i in at]
        if form == "strip":
            self._image(torch.cat(pictures, dim=2), "strip.png")
            return
        first, *rest = (_pil(picture) for picture in pictures)
        buffer = io.BytesIO()
        pause = [80] * len(rest) + [1500]  # milliseconds; the last one stays
        first.save(
            buffer, "GIF", save_all=True, append_images=rest, duration=pause, loop=0
        )
        self._write(self.folder / "trajectory.gif", buffer.getvalue())

    def shown(self, x: Tensor) -> Tensor:
        """The part of a batch that a film shows."""
        part = x if self.spec.points else x[:TILES]
        return (part.float() if part.is_floating_point() else part).cpu()

    def describe(self, about: dict[str, Any]) -> None:
        """What was asked for, and what it took, as `about.json`."""
        text = json.dumps(about, indent=1)
        self._write(self.folder / "about.json", text.encode())

    def note(self, what: Mapping[str, Any]) -> None:
        """Keep what drawing took, beside the chunks."""
        self._write(self._noted, json.dumps(what).encode())

    def noted(self) -> dict[str, Any]:
        """What was noted last; nothing if the drawing was cut short."""
        return self._read(self._noted)

    @property
    def _noted(self) -> Path:
        return self.folder / "chunks" / "calls.json"

    def _files(self, n: int) -> None:
        """One file per sample; how many are there already stands in `chunks/saved`."""
        marker = self.folder / "chunks" / "saved"
        text = marker.read_bytes() if marker.exists() else b""
        done = int(text) if text.isdigit() else 0
        first = 0
        for x in self.samples(n):
            if first + len(x) > done:
                failpoints.hit("sample.write", first)
                self.kind.save(x, self.spec, self.folder, first)
            first += len(x)
        self._write(marker, str(max(n, done)).encode())

    def _picture(self, name: str, x: Tensor) -> None:
        self._image(self.kind.picture(x, self.spec), name)

    def _image(self, picture: Tensor, name: str) -> None:
        buffer = io.BytesIO()
        _pil(picture).save(buffer, "PNG")
        self._write(self.folder / name, buffer.getvalue())

    def _whole(self, number: int) -> bool:
        """Whether a chunk is there, and is one."""
        path = self._chunk(number)
        if not path.exists():
            return False
        try:
            return len(np.load(path, mmap_mode="r")) == self.batch
        except (ValueError, TypeError, EOFError):
            _log.warning("%s is damaged and drawn again", path)
            return False

    @staticmethod
    def _read(path: Path) -> dict[str, Any]:
        """A JSON object that was kept; empty if it is not there, or damaged."""
        try:
            found = json.loads(path.read_bytes())
        except (FileNotFoundError, ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    def _chunk(self, number: int) -> Path:
        return self.folder / "chunks" / f"{number:06d}.npy"

    def _write(self, path: Path, data: bytes) -> None:
        with storage(path), staged(path) as part:
            part.write_bytes(data)


def _scaled(x: Tensor) -> Tensor:
    """A noisy state at the scale of data, so that it can be seen."""
    return x / max(1.0, float(x.std())) if x.is_floating_point() else x


def _pil(picture: Tensor) -> Image.Image:
    return Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy())
