"""The digits inside the package, for every data set of them. Registers nothing."""

from __future__ import annotations

from importlib.resources import files

import numpy as np

from diffusion_cli.datasets.tables import Table


def digits(split: str) -> Table:
    """Levels 0 .. 16 of `all` digits, of every tenth (`test`), or of the others."""
    with files(__package__).joinpath("digits.npz").open("rb") as file:
        arrays = np.load(file)
        images, labels = arrays["images"], arrays["labels"]
    tenth = np.arange(len(labels)) % 10 == 9
    kept = {"all": slice(None), "train": ~tenth, "test": tenth}[split]
    return Table(images[kept], labels[kept])
