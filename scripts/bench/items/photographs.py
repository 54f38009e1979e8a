"""CIFAR-10 below `DCLI_DATA`: as published, or as JPEG files in a .zip."""

from __future__ import annotations

import os
from pathlib import Path

from peers import HOME
from recipe import Config, read

MISSING = "no CIFAR-10 below DCLI_DATA, neither published nor cifar10_jpeg/train.zip"


def node(split: str = "train") -> Config:
    """The data set of a config; `FileNotFoundError` if there is none.

    Args:
        split: `train` or `test`.
    """
    root = Path(os.environ.get("DCLI_DATA", "data")).absolute()
    cache, archive = str(HOME / "cache"), root / "cifar10_jpeg" / f"{split}.zip"
    common = {"labels": False, "flip": True, "cache": cache}
    if (root / "cifar-10-batches-py").is_dir():
        found = read("dataset/cifar10")["dataset"]
        return found | common | {"root": str(root), "split": split}
    if archive.exists():
        found = read("dataset/image_folder")["dataset"]
        return found | common | {"path": str(archive)}
    raise FileNotFoundError(MISSING)
