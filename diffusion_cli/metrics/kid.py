"""The kernel distance of features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from diffusion_cli.metrics import Features, metrics
from diffusion_cli.metrics.fidelity import Fidelity, library
from diffusion_cli.settings import require


@metrics("kid")
class KID(Fidelity):
    """The squared MMD of features with a cubic kernel, unbiased, over random subsets.

    k(x, y) = (x.y / d + 1)^3

    The mean over the subsets; it may be negative, and its mean is 0 for equal laws.
    Computed by torch-fidelity, as is the choice of the subsets.

    Reference: Binkowski et al. 2018, section 4, arXiv:1801.01401.

    Args:
        features: What images are compared by; null is Inception.
        n: Number of samples.
        reference: Number of data; null is all of them.
        subsets: Number of subsets.
        size: Samples in each; at most what there is.
        seeds: How often the samples are drawn, for a mean and its spread.
    """

    stem = "kid"

    def __init__(
        self,
        features: Features | None = None,
        n: int = 10_000,
        reference: int | None = 10_000,
        subsets: int = 100,
        size: int = 1000,
        seeds: int = 1,
    ) -> None:
        super().__init__(features, n, reference, seeds)
        require(subsets >= 1, "subsets", subsets, ">= 1")
        require(size >= 2, "size", size, ">= 2")
        self.subsets, self.size = subsets, size

    def measure(self, samples: Tensor, data: Tensor) -> Mapping[str, float]:
        kid = library("metric_kid")
        size = min(self.size, len(samples), len(data))
        found = kid.kid_features_to_metric(
            samples,
            data,
            kid_subsets=self.subsets,
            kid_subset_size=size,
            verbose=False,
        )
        return {"kid": found[kid.KEY_METRIC_KID_MEAN]}

    def told(self) -> list[Any]:
        return [self.subsets, self.size]
