"""MNIST, Fashion-MNIST and CIFAR-10: torchvision knows their places and formats.

Its classes parse the files once, into our cache; later runs do not import them.
"""

from __future__ import annotations

import gzip
import shutil
import tarfile
from pathlib import Path
from typing import Any, Literal

import numpy as np

from diffusion_cli.datasets import datasets
from diffusion_cli.datasets.download import Remote, fetch
from diffusion_cli.datasets.images import Images, image_spec
from diffusion_cli.datasets.storage import build_once, staged, writing
from diffusion_cli.datasets.tables import Table, read_table, write_table
from diffusion_cli.errors import DataError
from diffusion_cli.paths import typed

Split = Literal["train", "test"]

CLOTHES = (
    *("t-shirt", "trouser", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
)
THINGS = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)


@datasets("mnist")
class MNIST(Images):
    """Handwritten digits: 60,000 for training, 10,000 for tests, 28x28 grey levels.

    Reference: LeCun, Bottou, Bengio and Haffner 1998, "Gradient-based learning applied
    to document recognition".

    Args:
        root: Folder with `MNIST/raw`; missing files are downloaded into it.
        cache: Folder for the parsed data.
        split: Which part of the set.
        labels: Serve the digit as a class label.
    """

    def __init__(
        self,
        root: str = "data",
        cache: str = "~/.cache/dcli",
        split: Split = "train",
        labels: bool = True,
    ) -> None:
        super().__init__()
        self.root, self.cache = typed(root, "root"), typed(cache, "cache")
        self.split = split
        self.spec = image_spec((1, 28, 28), tuple("0123456789") if labels else ())

    def read(self) -> Table:
        return _cached("MNIST", self.root, self.cache, self.split)


@datasets("fashion_mnist")
class FashionMNIST(Images):
    """Pictures of clothes: 60,000 for training, 10,000 for tests, 28x28 grey levels.

    Reference: Xiao, Rasul and Vollgraf 2017, "Fashion-MNIST", arXiv:1708.07747.

    Args:
        root: Folder with `FashionMNIST/raw`; missing files are downloaded into it.
        cache: Folder for the parsed data.
        split: Which part of the set.
        labels: Serve the kind of clothing as a class label.
    """

    def __init__(
        self,
        root: str = "data",
        cache: str = "~/.cache/dcli",
        split: Split = "train",
        labels: bool = True,
    ) -> None:
        super().__init__()
        self.root, self.cache = typed(root, "root"), typed(cache, "cache")
        self.split = split
        self.spec = image_spec((1, 28, 28), CLOTHES if labels else ())

    def read(self) -> Table:
        return _cached("FashionMNIST", self.root, self.cache, self.split)


@datasets("cifar10")
class CIFAR10(Images):
    """Small photographs: 50,000 for training, 10,000 for tests, 32x32 pixels in RGB.

    Reference: Krizhevsky 2009, "Learning multiple layers of features from tiny images".

    Args:
        root: Folder with `cifar-10-batches-py`; it is downloaded if it is missing.
        cache: Folder for the parsed data.
        split: Which part of the set.
        labels: Serve the kind of thing as a class label.
        flip: Mirror each image left to right with probability 1/2.
    """

    def __init__(
        self,
        root: str = "data",
        cache: str = "~/.cache/dcli",
        split: Split = "train",
        labels: bool = True,
        flip: bool = False,
    ) -> None:
        super().__init__(flip)
        self.root, self.cache = typed(root, "root"), typed(cache, "cache")
        self.split = split
        self.spec = image_spec((3, 32, 32), THINGS if labels else ())

    def read(self) -> Table:
        return _cached("CIFAR10", self.root, self.cache, self.split)


def _cached(name: str, root: Path, cache: Path, split: Split) -> Table:
    """The table of a set, from the cache or parsed into it."""

    def parse(folder: Path) -> None:
        write_table(folder, [_parse(name, root, split)])

    entry = cache / f"{name.lower()}-{split}"
    return read_table(build_once(entry, parse))


def _parse(name: str, root: Path, split: Split) -> Table:
    from torchvision import datasets as published

    source = getattr(published, name)
    if name == "CIFAR10":
        _complete_cifar(source, root)
    else:
        _complete_mnist(source, root / name / "raw")
    try:
        found = source(root, train=split == "train")
    except (RuntimeError, ValueError, TypeError, AssertionError, KeyError) as error:
        message = f"{root}: the files of {name} are damaged: {error}"
        hint = f"delete them from {root} and run the same command again"
        raise DataError(message, hint, "DATA-HASH") from error
    pixels = np.asarray(found.data)
    if pixels.ndim == 3:
        pixels = pixels[..., None]
    return Table(pixels.transpose(0, 3, 1, 2), np.asarray(found.targets))


def _complete_mnist(source: Any, folder: Path) -> None:
    """Fetch and unpack what is missing of the four files of an MNIST."""
    missing = [
        Remote(packed, tuple(mirror + packed for mirror in source.mirrors), md5)
        for packed, md5 in source.resources
        if not (folder / Path(packed).stem).exists()
    ]
    for number, remote in enumerate(missing):
        archive = fetch(remote, folder, beside=missing[number + 1 :])
        with (
            writing(folder, f"gunzip {archive}"),
            gzip.open(archive) as packed_file,
            staged(folder / Path(remote.name).stem) as part,
            part.open("wb") as file,
        ):
            shutil.copyfileobj(packed_file, file)


def _complete_cifar(source: Any, root: Path) -> None:
    """Fetch and unpack the batches of CIFAR-10 if one is missing."""
    names = [name for name, _ in source.train_list + source.test_list]
    folder = root / source.base_folder
    if not all((folder / name).exists() for name in [*names, source.meta["filename"]]):
        remote = Remote(source.filename, (source.url,), source.tgz_md5)
        archive = fetch(remote, root)
        with writing(root, f"tar xf {archive}"), tarfile.open(archive) as packed_files:
            packed_files.extractall(root, filter="data")
