"""DDPM's large reverse variance, as the optimal variance of normal data."""

from __future__ import annotations

from typing import cast

from torch import Tensor

from diffusion_cli.core import Normal, Posterior
from diffusion_cli.denoiser import Denoiser
from diffusion_cli.guidance import guidances
from diffusion_cli.processes.affine import Diffusion, beside
from diffusion_cli.settings import require


@guidances("large")
class Large(Denoiser):
    """Gives the belief the variance it would have for data N(0, data_std^2 I).

    Var[x_0 | x_t] = sd^2 sigma^2 / (alpha^2 sd^2 + sigma^2)

    With sd = 1 the ancestral step then has DDPM's large variance beta_t; sd = 0 is the
    small one.

    Reference: Ho et al. 2020, section 3.2, arXiv:2006.11239; Bao et al. 2022,
        section 3, arXiv:2201.06503.

    Args:
        data_std: Standard deviation sd of the data.
    """

    needs = Diffusion
    varies = True

    def __init__(self, denoiser: Denoiser, data_std: float = 1.0) -> None:
        super().__init__()
        require(data_std >= 0, "data_std", data_std, ">= 0")
        self.inner, self.data_std = denoiser, data_std
        self.process = denoiser.process

    def forward(self, x: Tensor, t: Tensor, **cond: Tensor) -> Posterior:
        q = self.inner(x, t, **cond)
        k = cast(Diffusion, self.process).at(t, x)
        data = self.data_std**2
        var = data * k.sigma**2 / (k.alpha**2 * data + k.sigma**2)
        return Normal(q.mean, beside(var, x)).tilted(q.tilt)
