"""The digits as tokens: grey levels that a model may only tell apart."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from diffusion_cli.core import Spec
from diffusion_cli.datasets import Batch, Dataset, datasets
from diffusion_cli.datasets.embedded import digits
from diffusion_cli.datasets.given import ARRAYS, files_in, token_array
from diffusion_cli.datasets.images import Images, image_spec
from diffusion_cli.datasets.sources import EXTENSIONS
from diffusion_cli.rng import Rng

LEVELS, SIDE = 17, 8
GREY = image_spec((1, SIDE, SIDE), (), LEVELS)


@datasets("digit_tokens")
class DigitTokens(Dataset):
    """1,797 handwritten digits as 64 tokens of 17 levels, row by row.

    Token v stands for the grey level 2 v / 16 - 1 of `dataset=digits`.

    Reference: E. Alpaydin and C. Kaynak 1998, UCI Machine Learning Repository,
    doi:10.24432/C50P49, CC BY 4.0.

    Args:
        labels: Serve the digit as a class label.
        split: All digits, nine of ten, or every tenth.
    """

    def __init__(
        self, labels: bool = True, split: Literal["all", "train", "test"] = "all"
    ) -> None:
        names = tuple("0123456789") if labels else ()
        self.spec = Spec(
            (SIDE * SIDE,), "tokens", classes=len(names), vocab=LEVELS, names=names
        )
        self.split = split
        self._tokens = torch.empty(0, SIDE * SIDE, dtype=torch.uint8)
        self._labels = torch.empty(0, dtype=torch.int64)

    def prepare(self) -> None:
        images, labels = digits(self.split)
        self._tokens = torch.from_numpy(images).flatten(1)
        self._labels = torch.from_numpy(labels.astype(np.int64))

    def __len__(self) -> int:
        return len(self._labels)

    def batch(self, indices: Tensor, rng: Rng) -> Batch:
        chosen = indices.to(self._labels.device)
        x0 = self._tokens.index_select(0, chosen).long()
        if not self.spec.classes:
            return x0, {}
        return x0, {"label": self._labels.index_select(0, chosen)}

    def to(self, device: torch.device) -> bool:
        self._tokens = self._tokens.to(device)
        self._labels = self._labels.to(device)
        return True

    @classmethod
    def save(cls, x: Tensor, spec: Spec, folder: Path, first: int) -> None:
        Images.save(_grey(x), GREY, folder, first)

    @classmethod
    def load(cls, path: Path, spec: Spec) -> Tensor:
        found = [
            token_array(file, spec)
            if file.suffix.lower() in ARRAYS
            else _tokens(Images.load(file, GREY))
            for file in files_in(path, EXTENSIONS)
        ]
        return torch.cat(found)

    @classmethod
    def picture(cls, x: Tensor, spec: Spec) -> Tensor:
        return Images.picture(_grey(x), GREY)


def _grey(x: Tensor) -> Tensor:
    """Images (B, 1, 8, 8) in [-1, 1]; a masked token is mid-grey."""
    level = torch.where(x < LEVELS, x, (LEVELS - 1) // 2).float()
    return (level / ((LEVELS - 1) / 2) - 1).reshape(-1, 1, SIDE, SIDE)


def _tokens(x: Tensor) -> Tensor:
    """The inverse, for images without masked tokens: (B, 64) int64."""
    return ((x + 1) * ((LEVELS - 1) / 2)).round().long().flatten(1)
