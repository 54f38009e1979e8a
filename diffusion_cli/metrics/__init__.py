"""Metrics: how good a trained model is, in numbers that say what they mean."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from diffusion_cli.denoiser import Denoiser, Model
from diffusion_cli.processes import Process
from diffusion_cli.registry import Registry
from diffusion_cli.rng import Rng


class Batch(NamedTuple):
    """Clean data with its conditions; `rng` has a row per sample, its index."""

    x0: Tensor
    cond: dict[str, Tensor]
    rng: Rng


class Subject(ABC):
    """What is measured: a trained model, the data, and samples that are drawn once.

    Args:
        model: In evaluation mode and frozen; its process is `model.process`.
        denoiser: The model inside its guidance, as it samples.
    """

    model: Model
    denoiser: Denoiser
    device: torch.device

    @abstractmethod
    def data(self, n: int, first: int = 0) -> Iterator[Batch]:
        """Data first .. first + n - 1 in a fixed random order; fewer if it ends."""

    @abstractmethod
    def samples(self, n: int) -> Tensor:
        """The first n samples, (n, ...), on the CPU; kept for the next metric."""


@dataclass(frozen=True)
class Result:
    """What a metric found.

    Args:
        values: By name; `<name>_se` is the standard error of `<name>`.
        table: Rows of a table with the same keys each.
        notes: What a reader must know: floors, protocols, heuristics.
    """

    values: Mapping[str, float]
    table: Sequence[Mapping[str, float]] = ()
    notes: tuple[str, ...] = field(default=())


class Metric(ABC):
    """One question about a trained model; the constructor takes its protocol.

    A constructor with an argument `n`, the number of samples, follows `dcli eval n=`.
    """

    needs: ClassVar[type[Process]] = Process

    @abstractmethod
    def __call__(self, subject: Subject) -> Result:
        """Measure. Batches go to `subject.device`; sums are float64."""


metrics: Registry[Metric] = Registry("metric", Metric, __name__, given=("context",))
