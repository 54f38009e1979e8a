"""Statistics of two sets of features by torch-fidelity. Registers nothing."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from torch import Tensor

from diffusion_cli.errors import DataError, EnvironmentFault
from diffusion_cli.metrics import Features, Metric, Result, Subject, extractors
from diffusion_cli.metrics.seen import Seen
from diffusion_cli.metrics.summaries import continuous, spread
from diffusion_cli.settings import require

FEWEST = 4  # samples of which anything is said


def library(module: str) -> Any:
    """A module of torch-fidelity; without it `EnvironmentFault`."""
    try:
        return import_module(f"torch_fidelity.{module}")
    except ImportError as error:
        message = "metric: it is computed by the package torch-fidelity"
        raise EnvironmentFault(message, "pip install 'diffusion-cli[fid]'") from error


class Fidelity(Metric, ABC):
    """Numbers of n samples and the data, as features, with the protocol in their names.

    Args:
        features: What they are compared by; None is Inception.
        n: Number of samples.
        reference: Number of data; None is all.
        seeds: How often the samples are drawn.
    """

    stem: str  # fid: its value is called fid_<n>_<features>
    n: int
    floored = True  # whether data have a value in the place of samples

    def __init__(
        self, features: Features | None, n: int, reference: int | None, seeds: int
    ) -> None:
        require(n >= FEWEST, "n", n, f">= {FEWEST}")
        enough = reference is None or reference >= FEWEST
        require(enough, "reference", reference, f">= {FEWEST} or null")
        require(seeds >= 1, "seeds", seeds, ">= 1")
        self.features = features or extractors.build({"name": "inception"})
        self.n, self.reference, self.seeds = n, reference, seeds

    @abstractmethod
    def measure(self, samples: Tensor, data: Tensor) -> Mapping[str, float]:
        """The numbers of two sets of features (n, d), float64, by their stems."""

    def __call__(self, subject: Subject) -> Result:
        continuous(subject.model.spec, self.stem)
        library("metrics")
        seen, n = Seen(self.features, subject), self.n
        data = seen((x0 for x0, _, _ in subject.data(self.reference)), self.reference)
        if len(data) < FEWEST:
            raise DataError(f"metric.{self.stem}: needs {FEWEST} data")
        protocol = [seen.key, seen.digest, self.told()]
        values = self._named(self._drawn(subject, seen, data))
        notes = [f"{n} samples against {len(data)} data; features: {seen.key}"]
        if self.floored:
            floor, note = self._floor(subject, seen, data)
            values |= {f"{key}_floor": v for key, v in self._named(floor).items()}
            notes.append(note)
        word = hashlib.sha256(json.dumps(protocol).encode()).hexdigest()[:8]
        return Result(values, notes=tuple(notes), protocol=word)

    def told(self) -> list[Any]:
        """Arguments on which the numbers depend besides n and the features."""
        return []

    def _drawn(self, subject: Subject, seen: Seen, data: Tensor) -> dict[str, float]:
        found = []
        for draw in range(self.seeds):
            x = subject.samples(self.n, draw)
            found.append(dict(self.measure(seen([x], self.n), data)))
        return spread(found)

    def _floor(
        self, subject: Subject, seen: Seen, data: Tensor
    ) -> tuple[Mapping[str, float], str]:
        """The same numbers of data in the place of samples: what is perfect."""
        n, other = self.n, subject.held_out(self.n)
        if other is not None:
            found = seen((x0 for x0, _, _ in other), n)
            what = f"{len(found)} data of the other split in their place"
            return self.measure(found, data), f"floor: {what}"
        n = min(n, len(data) // 2)
        what = f"{n} of the data in their place, against the other {len(data) - n}"
        return self.measure(data[:n], data[n:]), f"floor: {what}"

    def _named(self, values: Mapping[str, float]) -> dict[str, float]:
        """`fid_10k_inception`, `fid_10k_inception_sd`."""
        named = {}
        for key, value in values.items():
            stem, tail = key.removesuffix("_sd"), "_sd" * key.endswith("_sd")
            named[f"{stem}_{counted(self.n)}_{self.features.name}{tail}"] = value
        return named


def counted(n: int) -> str:
    """10000 as 10k."""
    return str(n) if n % 1000 else f"{n // 1000}k"
