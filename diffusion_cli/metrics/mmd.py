"""The kernel two-sample statistic."""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion_cli.metrics import Metric, Result, Subject, metrics
from diffusion_cli.metrics.points import compared
from diffusion_cli.settings import require


@metrics("mmd")
class MMD(Metric):
    """The squared maximum mean discrepancy with Gaussian kernels, unbiased.

    MMD^2 = E[k(x, x')] + E[k(y, y')] - 2 E[k(x, y)]
    k     = mean over h of exp(-|x - y|^2 / (2 h^2)),   h = scale * median |y - y'|

    The pairs differ, so the value may be negative; its mean is 0 for equal laws. Beside
    it stands the floor, the same between two disjoint parts of the data.

    Reference: Gretton et al. 2012, "A kernel two-sample test", eq. 3, JMLR 13.

    Args:
        n: Number of points on either side; memory grows with its square.
        scales: Bandwidths in units of the median distance of the data.
        seeds: How often the samples are drawn, for a mean and its spread.
    """

    def __init__(
        self,
        n: int = 2000,
        scales: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0),
        seeds: int = 1,
    ) -> None:
        require(n >= 2, "n", n, ">= 2")
        require(seeds >= 1, "seeds", seeds, ">= 1")
        good = len(scales) > 0 and min(scales) > 0
        require(good, "scales", list(scales), "a list of numbers > 0")
        self.n, self.seeds, self.scales = n, seeds, scales

    def __call__(self, subject: Subject) -> Result:
        return compared(subject, self.n, self.seeds, "mmd", "mmd2", self.distance)

    def distance(self, x: Tensor, y: Tensor) -> float:
        """MMD^2 of two sets of n points, (n, d) each; `y` sets the bandwidths."""
        within, across = torch.cdist(y, y), torch.cdist(x, y)
        median = within[~torch.eye(len(y), dtype=torch.bool)].median().clamp(min=1e-12)
        widths = [scale * float(median) for scale in self.scales]

        def kernel(gaps: Tensor) -> Tensor:
            terms = [torch.exp(-(gaps / h).square() / 2) for h in widths]
            return torch.stack([term.sum() for term in terms]).mean()

        pairs = len(x) * (len(x) - 1)
        own = kernel(torch.cdist(x, x)) + kernel(within) - 2 * len(x)
        return float(own / pairs - 2 * kernel(across) / len(x) ** 2)
