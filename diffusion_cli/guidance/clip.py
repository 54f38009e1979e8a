"""Keep the belief inside the range of the data."""

from __future__ import annotations

from torch import Tensor

from diffusion_cli.core import Posterior
from diffusion_cli.denoiser import Denoiser
from diffusion_cli.guidance import guidances
from diffusion_cli.processes.affine import Affine
from diffusion_cli.settings import require


@guidances("clip")
class Clip(Denoiser):
    """Clamps E[x_0 | x_t] to the range of the data before a step is made from it.

    Where little signal is left, x_0 = (x - sigma eps) / alpha magnifies every error of
    eps by sigma / alpha; clamping keeps an unfinished network from running away. The
    step is then no longer one of the ODE, so orders of convergence are lost.

    Reference: Saharia et al. 2022, section 2.3 (static thresholding), arXiv:2205.11487.

    Args:
        low: Smallest value of a clean sample.
        high: Largest value of a clean sample.
    """

    needs = Affine

    def __init__(
        self, denoiser: Denoiser, low: float = -1.0, high: float = 1.0
    ) -> None:
        super().__init__()
        require(low < high, "low", low, f"< high={high:g}")
        self.inner, self.low, self.high = denoiser, low, high
        self.process = denoiser.process

    def forward(self, x: Tensor, t: Tensor, **cond: Tensor) -> Posterior:
        q: Posterior = self.inner(x, t, **cond)
        mean = q.mean.clamp(self.low, self.high)
        return q.around(mean)
