"""The coupling of every diffusion model: none."""

from __future__ import annotations

from torch import Tensor

from diffusion_cli.couplings import Coupled, Coupling, couplings
from diffusion_cli.rng import Rng


@couplings("independent")
class Independent(Coupling):
    """Noise independent of the data: q(x_0, n) = q(x_0) q(n).

    Reference: Ho et al. 2020, section 2, arXiv:2006.11239.
    """

    def __call__(self, x0: Tensor, noise: Tensor, rng: Rng, **cond: Tensor) -> Coupled:
        return x0, noise, cond
