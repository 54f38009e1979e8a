"""The Frechet distance of features."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from diffusion_cli.metrics import Features, metrics
from diffusion_cli.metrics.fidelity import Fidelity, library


@metrics("fid")
class FID(Fidelity):
    """The Frechet distance of two normals with the moments of the features, float64.

    FID = |m - m'|^2 + tr(S + S' - 2 (S S')^1/2)

    It falls as n grows, so n stands in its name. Beside it stands the floor: data of
    the other split in the samples' place, or one part of the data against the rest.
    Computed by torch-fidelity.

    Reference: Heusel et al. 2017, eq. 6, arXiv:1706.08500.

    Args:
        features: What images are compared by; null is Inception.
        n: Number of samples.
        reference: Number of data; null is all of them.
        seeds: How often the samples are drawn, for a mean and its spread.
    """

    stem = "fid"

    def __init__(
        self,
        features: Features | None = None,
        n: int = 10_000,
        reference: int | None = None,
        seeds: int = 1,
    ) -> None:
        super().__init__(features, n, reference, seeds)

    def measure(self, samples: Tensor, data: Tensor) -> Mapping[str, float]:
        fid = library("metric_fid")
        one, other = (fid.fid_features_to_statistics(x) for x in (samples, data))
        found = fid.fid_statistics_to_metric(one, other, verbose=False)
        return {"fid": found[fid.KEY_METRIC_FID]}
