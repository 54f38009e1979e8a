"""The Gaussian process: DDPM, DDIM, VP, VE, sub-VP, EDM and flow matching."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from diffusion_cli.core import Posterior
from diffusion_cli.processes import processes
from diffusion_cli.processes.affine import Diffusion, Schedule, blend, root
from diffusion_cli.rng import Rng
from diffusion_cli.settings import require


@processes("gaussian")
class Gaussian(Diffusion):
    """x_t = alpha x_0 + sigma n with n ~ N(0, I); one reverse step covers a family.

    v   = (eta sigma_s)^2 (1 - (alpha_t sigma_s / alpha_s sigma_t)^2)
    x_s = alpha_s E[x_0] + k (x_t - alpha_t E[x_0])
          + sqrt(v + (alpha_s - k alpha_t)^2 Var[x_0]) z
    k   = sqrt(sigma_s^2 - v) / sigma_t

    eta = 1 is DDPM's small variance, eta = 0 is DDIM; a belief with a variance adds the
    optimal reverse variance, a tilted one moves the mean by variance times tilt. At
    s = 0 the mean is taken, or a draw.

    Reference: Ho et al. 2020, eq. 7, arXiv:2006.11239; Song et al. 2021, eq. 12,
        arXiv:2010.02502; Bao et al. 2022, eq. 7, arXiv:2201.06503.

    Args:
        schedule: alpha(t) and sigma(t).
    """

    def __init__(self, schedule: Schedule) -> None:
        super().__init__(schedule)

    def check(self, eta: float = 1.0, **how: Any) -> None:
        require(0 <= eta <= 1, "eta", eta, "in [0, 1]")

    def reverse(  # type: ignore[override]  # keywords are checked by `assemble`
        self,
        q: Posterior,
        x: Tensor,
        t: Tensor,
        s: Tensor,
        rng: Rng,
        eta: float = 1.0,
        final: Literal["mean", "draw"] = "mean",
    ) -> Tensor:
        a, b = self.at(t, x), self.at(s, x)
        ratio = a.alpha * b.sigma / (b.alpha * a.sigma)
        v = (eta * b.sigma) ** 2 * (1 - ratio**2)
        k = root(b.sigma**2 - v) / a.sigma
        mean = blend(k, x, b.alpha - k * a.alpha, q.mean)
        variance = v + (b.alpha - k * a.alpha) ** 2 * q.var
        deterministic = eta == 0 and isinstance(q.var, float)
        if deterministic or (final == "mean" and not s.any()):
            return mean
        normal = rng.child("reverse").normal(x.shape, x.dtype)
        return mean + variance * q.tilt + root(variance) * normal
