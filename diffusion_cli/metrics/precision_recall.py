"""Fidelity and variety apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from diffusion_cli.metrics import Features, metrics
from diffusion_cli.metrics.fidelity import Fidelity, library
from diffusion_cli.settings import require


@metrics("precision_recall")
class PrecisionRecall(Fidelity):
    """How many samples lie among the data, and how many data among the samples.

    A set's region is the union of balls around its points, each up to its k-th nearest
    neighbour in the set. Computed by torch-fidelity; memory grows with n times
    `reference`.

    Reference: Kynkaanniemi et al. 2019, eqs. 1 and 2, arXiv:1904.06991.

    Args:
        features: What images are compared by; null is Inception.
        n: Number of samples.
        reference: Number of data; null is all of them.
        neighbours: k.
        seeds: How often the samples are drawn, for a mean and its spread.
    """

    stem = "precision_recall"
    higher = True

    def __init__(
        self,
        features: Features | None = None,
        n: int = 10_000,
        reference: int | None = 10_000,
        neighbours: int = 3,
        seeds: int = 1,
    ) -> None:
        super().__init__(features, n, reference, seeds)
        require(neighbours >= 1, "neighbours", neighbours, ">= 1")
        enough = n > neighbours and (reference is None or reference > neighbours)
        require(enough, "neighbours", neighbours, "< n and < reference")
        self.neighbours = neighbours

    def measure(self, samples: Tensor, data: Tensor) -> Mapping[str, float]:
        prc = library("metric_prc")
        found = prc.prc_features_to_metric(
            samples,
            data,
            prc_neighborhood=self.neighbours,
            prc_batch_size=4096,
            save_cpu_ram=True,
            verbose=False,
        )
        keys = {"precision": "PRECISION", "recall": "RECALL"}
        return {k: found[getattr(prc, f"KEY_METRIC_{w}")] for k, w in keys.items()}

    def told(self) -> list[Any]:
        return [self.neighbours]
