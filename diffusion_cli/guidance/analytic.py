"""Analytic-DPM: the optimal reverse variance, one number per time."""

from __future__ import annotations

from typing import Literal, cast

from torch import Tensor

from diffusion_cli.core import Normal, Posterior
from diffusion_cli.denoiser import Context, Denoiser
from diffusion_cli.guidance import guidances
from diffusion_cli.processes.affine import Diffusion, like
from diffusion_cli.variance import BY_FIT, Estimate, fitted, recorded


@guidances("analytic")
class Analytic(Denoiser):
    """Gives the belief the variance C(t) that the model leaves on average.

    noise   C = (sigma / alpha)^2 (1 - E |e|^2 / d),   e = (x_t - alpha E[x_0]) / sigma
    error   C = (sigma / alpha)^2 E |eps - e|^2 / d
    clean   C = Var[x_0] - E |E[x_0 | x_t] - E[x_0]|^2 / d

    The three agree for exact means; `error` is right for any other as well. `fit` takes
    what `dcli fit` found. `loss` needs no such pass: it takes the errors that the
    `denoise` objective noted while it trained, of its last steps, without averaging of
    weights and with dropout. Ancestral steps then have the optimal variance at any eta.

    Reference: Bao et al. 2022, theorem 1 and 2, arXiv:2201.06503; Su 2022, "Talks on
        generative diffusion models" part 8, https://kexue.fm/archives/9246.

    Args:
        source: Where C comes from; `loss` is always `error`.
        estimate: Which of the fitted averages.
        clip: Keep C between 0 and what noise and the range of the data allow.
    """

    needs = Diffusion
    varies = True

    def __init__(
        self,
        denoiser: Denoiser,
        context: Context,
        source: Literal["fit", "loss"] = "fit",
        estimate: Estimate = "error",
        clip: bool = True,
    ) -> None:
        super().__init__()
        self.inner, self.process = denoiser, denoiser.process
        process = cast(Diffusion, denoiser.process)
        if source == "fit":
            values = context.fitted("analytic", BY_FIT)
            self.spread = fitted(process, values, estimate, clip)
        else:
            self.spread = recorded(process, context.recorded("record.cells"), clip)

    def forward(self, x: Tensor, t: Tensor, **cond: Tensor) -> Posterior:
        q: Posterior = self.inner(x, t, **cond)
        belief = Normal(q.mean, like(self.spread(t), x).to(x))
        belief.tilt = q.tilt
        return belief
