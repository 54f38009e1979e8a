"""Text: windows of one file, character by character or byte by byte."""

from __future__ import annotations

import hashlib
from importlib.resources import files
from typing import Literal

import torch
from torch import Tensor

from diffusion_cli.core import Spec
from diffusion_cli.datasets import Batch, datasets
from diffusion_cli.datasets.writing import Writing, read
from diffusion_cli.errors import DataError
from diffusion_cli.paths import typed
from diffusion_cli.rng import Rng
from diffusion_cli.settings import require


@datasets("text")
class Text(Writing):
    """Windows of a text file, (B, length); 36 of Shakespeare's sonnets by default.

    Training takes a window at every place; a test takes windows side by side, so that
    every token is measured once. The last part of the file is the test's.

    Reference: W. Shakespeare 1609, "Sonnets", in modern spelling; public domain.

    Args:
        path: A text file in UTF-8; null is the one inside the package.
        length: Tokens in a window.
        unit: A token is a character that occurs in the file, or a byte.
        split: The first part of the file, the last, or all of it.
        test: How much of the file is the test's.
    """

    def __init__(
        self,
        path: str | None = None,
        length: int = 128,
        unit: Literal["characters", "bytes"] = "characters",
        split: Literal["train", "test", "all"] = "train",
        test: float = 0.1,
    ) -> None:
        require(length >= 1, "length", length, ">= 1")
        require(0 < test < 1, "test", test, "in (0, 1)")
        self.path, self.length, self.unit = path, length, unit
        self.split, self.test = split, test
        self._tokens = torch.empty(0, dtype=torch.uint8)
        self._stride = length if split == "test" else 1

    def prepare(self) -> None:
        if len(self._tokens):
            return
        raw = self._raw()
        self.fingerprint = hashlib.sha256(raw).hexdigest() if self.path else ""
        if self.unit == "bytes":
            self.spec = Spec((self.length,), "tokens", vocab=256)
            tokens = list(raw)
        else:
            text = self._decoded(raw)
            known = "".join(sorted(set(text)))
            codec = {"characters": known}
            self.spec = Spec((self.length,), "tokens", vocab=len(known), codec=codec)
            tokens = read(text, self.spec)
        cut = round(len(tokens) * (1 - self.test))
        parts = {"train": tokens[:cut], "test": tokens[cut:], "all": tokens}
        own = parts[self.split]
        if len(own) < self.length:
            message = f"{self._name()}: its {self.split} part has {len(own)} tokens"
            shorter = f"dataset.length={len(own) // 2}"
            raise DataError(message, shorter if len(own) > 1 else "a longer file")
        self._tokens = torch.tensor(own)
        if self.spec.vocab <= 256:
            self._tokens = self._tokens.to(torch.uint8)

    def __len__(self) -> int:
        return max(0, (len(self._tokens) - self.length) // self._stride + 1)

    def batch(self, indices: Tensor, rng: Rng) -> Batch:
        start = indices.to(self._tokens.device) * self._stride
        within = torch.arange(self.length, device=self._tokens.device)
        return self._tokens[start[:, None] + within].long(), {}

    def to(self, device: torch.device) -> bool:
        self._tokens = self._tokens.to(device)
        return True

    def _raw(self) -> bytes:
        if self.path is None:
            return files(__package__).joinpath("sonnets.txt").read_bytes()
        try:
            return typed(self.path, "dataset.path").read_bytes()
        except OSError as error:
            message = f"dataset.path: {self.path}: {(error.strerror or '').lower()}"
            raise DataError(message, "dataset.path=<a text file>") from error

    def _decoded(self, raw: bytes) -> str:
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            message = f"{self._name()}: is not UTF-8"
            raise DataError(message, "dataset.unit=bytes") from error

    def _name(self) -> str:
        return self.path or "the text inside the package"
