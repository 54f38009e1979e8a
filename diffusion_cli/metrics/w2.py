"""The exact Wasserstein distance."""

from __future__ import annotations

from diffusion_cli.metrics import Metric, Result, Subject, metrics
from diffusion_cli.metrics.points import compared, optimal_transport
from diffusion_cli.settings import require


@metrics("w2")
class W2(Metric):
    """The exact 2-Wasserstein distance of n samples and n data, in float64.

    W2^2 = min over permutations p of mean_i |x_i - y_p(i)|^2

    Beside it stands the floor, the same between two disjoint parts of the data: a
    perfect model reaches it and no less. It needs the package POT.

    Reference: Bonneel et al. 2011, "Displacement interpolation using Lagrangian mass
        transport" (network simplex); Flamary et al. 2021, "POT: Python optimal
        transport", JMLR 22(78).

    Args:
        n: Number of points on either side; memory grows with its square.
        seeds: How often the samples are drawn, for a mean and its spread.
    """

    def __init__(self, n: int = 2000, seeds: int = 1) -> None:
        require(n >= 2, "n", n, ">= 2")
        require(seeds >= 1, "seeds", seeds, ">= 1")
        self.n, self.seeds = n, seeds

    def __call__(self, subject: Subject) -> Result:
        return compared(subject, self.n, self.seeds, "w2", "w2", optimal_transport)
