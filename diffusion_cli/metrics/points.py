"""Sets of points and their distances. Registers nothing."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from diffusion_cli.errors import DataError, EnvironmentFault, NumericsError
from diffusion_cli.metrics import Result, Subject
from diffusion_cli.metrics.summaries import continuous, spread

Distance = Callable[[Tensor, Tensor], float]


class Sets(NamedTuple):
    """Samples and two disjoint parts of the data: (n, d) each, float64 on the CPU."""

    samples: Tensor
    data: Tensor
    other: Tensor


def sets(subject: Subject, n: int, metric: str) -> Sets:
    """n points each; fewer if the data hold fewer than 2 n."""
    continuous(subject.model.spec, metric)
    batches = [x0.cpu().double().flatten(1) for x0, _, _ in subject.data(2 * n)]
    data = torch.cat(batches)
    n = len(data) // 2
    if n < 2:
        raise DataError(f"metric.{metric}: needs 4 data, there are {len(data)}")
    return Sets(points(subject, n), data[:n], data[n : 2 * n])


def points(subject: Subject, n: int, draw: int = 0) -> Tensor:
    """n samples as points, (n, d) float64."""
    samples = subject.samples(n, draw).cpu().double().flatten(1)
    if not samples.isfinite().all():
        raise NumericsError("metric: a sample is not finite")
    return samples


def compared(
    subject: Subject, n: int, seeds: int, metric: str, name: str, distance: Distance
) -> Result:
    """The distance of samples and data beside the one of two halves of the data."""
    found = sets(subject, n, metric)
    size = len(found.data)
    drawn = [found.samples, *(points(subject, size, k) for k in range(1, seeds))]
    values = spread([{name: distance(x, found.data)} for x in drawn])
    values[f"{name}_floor"] = distance(found.other, found.data)
    notes = [
        f"{size} samples against {size} data; floor: {size} other data in their place"
    ]
    if size < n:
        notes.append(f"n = {n} needs {2 * n} data; there are enough for {size}")
    return Result(values, notes=tuple(notes))


def optimal_transport(x: Tensor, y: Tensor) -> float:
    """The exact W2 of two sets of n points, (n, d) each."""
    try:
        import ot
    except ImportError as error:
        message = "metric.w2: exact optimal transport needs the package POT"
        raise EnvironmentFault(message, "pip install 'diffusion-cli[ot]'") from error
    cost = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square()
    return math.sqrt(ot.emd2([], [], cost.numpy(), numItermax=10_000_000))


def available() -> bool:
    """Whether the package POT is there."""
    return importlib.util.find_spec("ot") is not None
