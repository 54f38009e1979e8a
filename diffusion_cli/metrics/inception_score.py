"""Sure of each image, of many classes in all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from diffusion_cli.metrics import Features, metrics
from diffusion_cli.metrics.fidelity import Fidelity, library
from diffusion_cli.settings import require


@metrics("inception_score")
class InceptionScore(Fidelity):
    """exp of the mean divergence of a sample's classes from those of all samples.

    IS = exp E_x KL(p(y | x) | E_x p(y | x))

    The mean over the splits, larger is better, at most the number of classes; the
    floor is that of the data, the value to reach. Computed by torch-fidelity.

    Reference: Salimans et al. 2016, section 4, arXiv:1606.03498.

    Args:
        features: Whose classes; null is Inception's.
        n: Number of samples.
        reference: Number of data for the value to reach; null is all of them.
        splits: Parts of the samples, each with a score of its own.
        seeds: How often the samples are drawn, for a mean and its spread.
    """

    stem = "inception_score"
    higher = True

    def __init__(
        self,
        features: Features | None = None,
        n: int = 10_000,
        reference: int | None = 10_000,
        splits: int = 10,
        seeds: int = 1,
    ) -> None:
        super().__init__(features, n, reference, seeds)
        require(1 <= splits <= n, "splits", splits, f"in 1 .. n = {n}")
        self.splits = splits

    def measure(self, samples: Tensor, data: Tensor) -> Mapping[str, float]:
        isc = library("metric_isc")
        found = isc.isc_features_to_metric(self.features.logits(samples), self.splits)
        return {"inception_score": found[isc.KEY_METRIC_ISC_MEAN]}

    def told(self) -> list[Any]:
        return [self.splits]
