"""Data sets: samples by index, so that order and resume are arithmetic."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

import torch
from torch import Tensor

from diffusion_cli.core import Spec
from diffusion_cli.errors import ConfigError
from diffusion_cli.registry import Registry
from diffusion_cli.rng import Rng

Batch = tuple[Tensor, dict[str, Tensor]]


class Dataset(ABC):
    """A finite set of samples, addressed by index.

    The constructor only looks at its own arguments (`ValueError`); `prepare` may read
    files and download, and sets `spec`. So a command is refused before data is read.
    """

    spec: Spec
    notes: tuple[str, ...] = ()  # what the user should know of `prepare`: conversions
    fingerprint: str = ""  # of the files, where they may change between two runs

    def prepare(self) -> None:  # noqa: B027  # nothing to do for data that is embedded
        """Read or download the data once (`DataError`, `EnvironmentFault`)."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of samples."""

    @abstractmethod
    def batch(self, indices: Tensor, rng: Rng) -> Batch:
        """The samples at `indices` (B,), float32 in [-1, 1] or int64 tokens.

        Conditions are a dictionary with one row per sample (`label`, `extra`); `rng`
        has the same rows and serves augmentation. All is on the device of `indices`
        if the data is resident there, else on the CPU.
        """

    def to(self, device: torch.device) -> bool:
        """Move small data to `device`; whether it is resident there now."""
        return False

    def still(self) -> None:  # noqa: B027  # nothing to do without augmentation
        """Serve the samples as they are from here on: to measure, not to train."""

    @classmethod
    @abstractmethod
    def save(cls, x: Tensor, spec: Spec, folder: Path, first: int) -> None:
        """Write samples as files numbered from `first`; needs no data set on disk."""

    @classmethod
    def load(cls, path: Path, spec: Spec) -> Tensor:
        """What `save` wrote, or files like it: clean samples (N, ...) (`DataError`)."""
        raise ConfigError(f"{path}: this data set cannot read samples back")

    @classmethod
    def prompt(cls, text: str, spec: Spec, mask: str) -> Tensor:
        """The tokens of a text, (L,), -1 where it says `mask` and after its end."""
        raise ConfigError("prompt: these data are no text", "leave the prompt out")

    @classmethod
    @abstractmethod
    def picture(cls, x: Tensor, spec: Spec) -> Tensor:
        """An overview of a batch, uint8 (3, H, W): a grid of images, a scatter plot."""


datasets: Registry[Dataset] = Registry("dataset", Dataset, __name__)
