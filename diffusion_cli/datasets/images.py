"""Images as uint8 levels: what every image set shares. Registers nothing."""

from __future__ import annotations

import logging
import math
import warnings
from abc import ABC, abstractmethod
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad

from diffusion_cli.core import Spec
from diffusion_cli.datasets import Batch, Dataset
from diffusion_cli.datasets.decoding import Decoder, converted
from diffusion_cli.datasets.given import ARRAYS, array, broken, checked, files_in
from diffusion_cli.datasets.sources import EXTENSIONS, Entry, Folder
from diffusion_cli.datasets.storage import staged
from diffusion_cli.datasets.tables import Table
from diffusion_cli.errors import DataError
from diffusion_cli.paths import shown
from diffusion_cli.rng import Rng

_log = logging.getLogger(__name__)
RESIDENT = 2 * 2**30  # bytes; a set of at most this size lives on the device
LEGIBLE = 32  # pixels; smaller images are enlarged in pictures
GAP, GREY = 2, 96  # pixels between the tiles of a picture, and their level


def image_spec(
    shape: tuple[int, ...], names: tuple[str, ...], levels: int = 256
) -> Spec:
    """Images of `levels` grey or colour levels, one class for each of `names`."""
    return Spec(shape, classes=len(names), names=names, codec={"levels": levels})


class Images(Dataset, ABC):
    """Images served as float32 in [-1, 1], shape (B, C, H, W).

    x_0 = 2 v / (levels - 1) - 1   for the levels v = 0 .. levels - 1

    A set of at most `RESIDENT` bytes moves to the device, beside its mirror images if
    they are wanted: a batch is then one gather and one normalisation. On the CPU the
    pixels of a cached set are mapped from its file, read-only: a write into them ends
    the interpreter. Batches are copies.

    Args:
        flip: Mirror each image left to right with probability 1/2.
    """

    def __init__(self, flip: bool = False) -> None:
        self.flip = flip
        self._pixels = torch.empty(0, dtype=torch.uint8)  # (N or 2N, C, H, W)
        self._labels = torch.empty(0, dtype=torch.int64)  # (N,)

    @abstractmethod
    def read(self) -> Table:
        """Every image of the set; sets `spec` where the constructor could not."""

    def prepare(self) -> None:
        if len(self) == 0:
            pixels, labels = self.read()
            with warnings.catch_warnings():  # of pixels on disk, which nobody writes to
                warnings.filterwarnings("ignore", "The given NumPy array is not writ")
                self._pixels = torch.from_numpy(pixels)
            self._labels = torch.from_numpy(labels.astype(np.int64, copy=False))

    def __len__(self) -> int:
        return len(self._labels)

    def batch(self, indices: Tensor, rng: Rng) -> Batch:
        home = self._pixels.device
        rows = chosen = indices.to(home)
        mirrored = len(self._pixels) > len(self)
        turn = rng.child("flip").words(1)[:, 0].to(home) & 1 if self.flip else None
        if turn is not None and mirrored:
            rows = chosen + turn * len(self)
        pixels = self._pixels.index_select(0, rows)
        if turn is not None and not mirrored:
            turned = turn.bool()[:, None, None, None]
            pixels = torch.where(turned, pixels.flip(-1), pixels)
        x0 = pixels.float().div_((_levels(self.spec) - 1) / 2).sub_(1)
        if not self.spec.classes:
            return x0, {}
        return x0, {"label": self._labels.index_select(0, chosen)}

    def still(self) -> None:
        self.flip = False

    def to(self, device: torch.device) -> bool:
        if len(self) * self.spec.numel * (1 + self.flip) > RESIDENT:
            return False
        self._pixels, self._labels = self._pixels.to(device), self._labels.to(device)
        if self.flip and len(self._pixels) == len(self):
            self._pixels = torch.cat((self._pixels, self._pixels.flip(-1)))
        return True

    @classmethod
    def save(cls, x: Tensor, spec: Spec, folder: Path, first: int) -> None:
        for number, image in enumerate(quantise(x, spec), first):
            channels = image.permute(1, 2, 0).numpy()  # (H, W, C)
            if image.shape[0] == 1:
                channels = channels[..., 0]
            with staged(folder / f"{number:06d}.png") as part:
                Image.fromarray(channels).save(part, format="PNG")

    @classmethod
    def load(cls, path: Path, spec: Spec) -> Tensor:
        channels, height, width = spec.shape
        decoder = Decoder((width, height), "exact", channels)
        found: list[Tensor] = []
        modes = Counter[str]()
        for file in files_in(path, EXTENSIONS):
            if file.suffix.lower() in ARRAYS:
                found.append(checked(file, array(file), spec.shape))
                continue
            info = file.stat()
            entry = Entry(file.name, info.st_size, info.st_mtime_ns)
            image = decoder(Folder(file.parent), entry)
            if image.fault:
                raise broken(file, image.fault)
            if image.pixels is None:
                message = f"{shown(str(file))}: {image.size[0]}x{image.size[1]} pixels"
                hint = f"the model's have {width}x{height}: scale or cut them to that"
                if (file.parent / "chunks").is_dir():
                    hint = f"it shows many samples: name the folder {file.parent} alone"
                raise DataError(message, hint, "DATA-SIZE")
            modes[image.mode] += 1
            found.append(_from_grey(torch.from_numpy(image.pixels.copy())[None], spec))
        if told := converted(modes, channels):
            _log.warning("%s: %s", shown(str(path)), told)
        return torch.cat(found)

    @classmethod
    def picture(cls, x: Tensor, spec: Spec) -> Tensor:
        zoom = max(1, LEGIBLE // max(spec.shape[1:]))
        tiles = quantise(x, spec).repeat_interleave(zoom, 2).repeat_interleave(zoom, 3)
        tiles = pad(tiles.expand(-1, 3, -1, -1), (0, GAP, 0, GAP), value=GREY)
        columns = math.ceil(math.sqrt(len(tiles)))
        rows = math.ceil(len(tiles) / columns)
        missing = (0, 0) * 3 + (0, rows * columns - len(tiles))
        tiles = pad(tiles, missing, value=GREY)
        tiles = tiles.view(rows, columns, *tiles.shape[1:])
        sheet = tiles.permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2)  # (3, H, W)
        return pad(sheet, (GAP, 0, GAP, 0), value=GREY)


def quantise(x: Tensor, spec: Spec) -> Tensor:
    """The nearest levels of x in [-1, 1], spread over 0 .. 255: uint8 on the CPU."""
    top = _levels(spec) - 1
    level = ((x.detach().float().cpu().clamp(-1, 1) + 1) * (top / 2)).round()
    return (level * (255 / top)).round().to(torch.uint8)


def _from_grey(pixels: Tensor, spec: Spec) -> Tensor:
    """x in [-1, 1] at the nearest level for uint8 pixels: the inverse of `quantise`."""
    top = _levels(spec) - 1
    return (pixels.float() * (top / 255)).round() * (2 / top) - 1


def _levels(spec: Spec) -> int:
    return int(spec.codec.get("levels", 256))
