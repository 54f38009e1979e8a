"""Metrics: how good a trained model is, in numbers that say what they mean."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from diffusion_cli.datasets import Dataset
from diffusion_cli.denoiser import Denoiser, Model
from diffusion_cli.processes import Process
from diffusion_cli.registry import Registry
from diffusion_cli.rng import Rng
from diffusion_cli.world import Alone, World


class Batch(NamedTuple):
    """Clean data with its conditions; `rng` has a row per sample, its index."""

    x0: Tensor
    cond: dict[str, Tensor]
    rng: Rng


class Walk(NamedTuple):
    """A way to sample: a sampler and a grid by their names, and a number of calls."""

    sampler: str
    grid: str | None
    nfe: int


class Subject(ABC):
    """What is measured: a trained model, the data, and samples that are drawn once.

    Args:
        model: In evaluation mode and frozen; its process is `model.process`.
        denoiser: The model inside its guidance, as it samples.
        kind: The data set's class, which makes pictures.
        batch: Samples in a batch of data; the last one may be shorter.
        cache: Where others leave what they computed; None for nowhere.
        world: The processes that measure it together. Each of them is asked for the
            same, and takes its share of the batches.
    """

    model: Model
    denoiser: Denoiser
    device: torch.device
    kind: type[Dataset]
    batch: int
    cache: Path | None = None
    world: World = Alone()

    @abstractmethod
    def data(self, n: int | None, first: int = 0) -> Iterator[Batch]:
        """Data first .. first + n - 1 in a fixed random order; all, or until they end.

        They come as they are, without augmentation.
        """

    def each(self, n: int, work: Callable[[Batch, int], Tensor]) -> Tensor:
        """`work` on every batch of `data(n)`, whoever does it, in order: (n, k).

        Args:
            n: How many data.
            work: k numbers for each sample of a batch, (B, ...), given the batch and
                the place of its first sample.
        """
        own = self.world.share(enumerate(self.data(n)))
        parts = [work(batch, i * self.batch) for i, batch in own]
        return self.world.pool(parts, self.batch)

    @abstractmethod
    def held_out(self, n: int) -> Iterator[Batch] | None:
        """The first n of the same data's other split; None if they have no other."""

    @abstractmethod
    def samples(self, n: int, draw: int = 0) -> Tensor:
        """The first n samples, (n, ...), on the CPU; kept for the next metric.

        Args:
            n: How many.
            draw: Another number is another seed.
        """

    @abstractmethod
    def walked(self, walk: Walk) -> Subject:
        """The same model sampled in another way; a `ConfigError` if it cannot be."""

    @abstractmethod
    def calls(self) -> float:
        """Network calls that each of the samples took."""

    @abstractmethod
    def classifier(self, run: str | None) -> tuple[Model, str]:
        """A classifier of the data's labels, and a name for its weights.

        Args:
            run: A run of `objective=classify`; None trains a small one, once.
        """


@dataclass(frozen=True)
class Result:
    """What a metric found.

    Args:
        values: By name; `<name>_se` is the standard error of `<name>`, `<name>_sd` its
            standard deviation over seeds.
        table: Rows of a table with the same keys each.
        notes: What a reader must know: floors, protocols, heuristics.
        files: Pictures to keep beside the numbers, as PNG, by name.
        protocol: A word that differs where numbers must not be compared, although the
            metric's arguments agree: other weights of features, other references.
    """

    values: Mapping[str, float]
    table: Sequence[Mapping[str, float | str]] = ()
    notes: tuple[str, ...] = field(default=())
    files: Mapping[str, bytes] = field(default_factory=dict)
    protocol: str = ""


class Metric(ABC):
    """One question about a trained model; the constructor takes its protocol.

    Arguments called `n`, the number of samples, `seeds`, how often they are drawn, and
    `features` follow the keys of `dcli eval`.
    """

    needs: ClassVar[type[Process]] = Process
    higher: ClassVar[bool] = False  # whether more of its first number is better

    @abstractmethod
    def __call__(self, subject: Subject) -> Result:
        """Measure. Batches go to `subject.device`; sums are float64."""


class Features(ABC):
    """What samples are compared by: a map to vectors, and to logits of classes.

    Images come as they would be stored: rounded to their levels.
    """

    name: str  # how metrics call it: `fid_10k_<name>`

    @abstractmethod
    def load(self, subject: Subject) -> str:
        """Get ready on `subject.device`; a word that differs where features would."""

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """The features (B, d) of samples (B, ...) in the range of the data."""

    @abstractmethod
    def logits(self, features: Tensor) -> Tensor:
        """The logits (B, K) that the last map makes of features (B, d)."""


metrics: Registry[Metric] = Registry("metric", Metric, __name__, given=("context",))
extractors: Registry[Features] = Registry(
    "features", Features, __name__, given=("context",)
)
