"""From values per sample to the lines of a result. Registers nothing."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from torch import Tensor

from diffusion_cli.core import Spec
from diffusion_cli.errors import ConfigError


def summary(name: str, values: Tensor) -> dict[str, float]:
    """The mean of values (N,) and its standard error over the samples."""
    values = values.double()
    spread = float(values.std()) if len(values) > 1 else math.nan
    return {name: float(values.mean()), f"{name}_se": spread / math.sqrt(len(values))}


def spread(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means of the same numbers under several seeds, and their standard deviations."""
    values = {key: math.fsum(f[key] for f in found) / len(found) for key in found[0]}
    if len(found) > 1:
        for key in found[0]:
            values[f"{key}_sd"] = statistics.stdev(one[key] for one in found)
    return values


def surprise(nats: Tensor, spec: Spec) -> dict[str, float]:
    """-log p per sample in nats, and per dimension in bits."""
    bits = nats / (spec.numel * math.log(2))
    return {**summary("nll_nats", nats), **summary("bits_per_dim", bits)}


def given(spec: Spec) -> str:
    """The protocol of numbers about labelled data, each with its label."""
    return "given the label" if spec.classes else ""


def meant(spec: Spec) -> str:
    """What the numbers of `surprise` are about."""
    given = "log p(x | label); " if spec.classes else ""
    if spacing(spec) is None:
        return f"{given}continuous data: differential nats and bits, which units change"
    return f"{given}bits of the discrete data, {spec.codec['levels']} levels"


def spacing(spec: Spec) -> float | None:
    """The distance of two neighbouring levels in [-1, 1]; None for continuous data."""
    levels = spec.codec.get("levels")
    return None if levels is None else 2 / (int(levels) - 1)


def continuous(spec: Spec, metric: str) -> None:
    """Refuse data that are not real numbers."""
    if spec.kind != "continuous":
        message = f"metric.{metric}: is for real numbers, the data are {spec.kind}"
        raise ConfigError(message, "dcli list metric")
