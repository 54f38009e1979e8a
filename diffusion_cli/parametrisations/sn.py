"""A head that learns how large the noise is."""

from __future__ import annotations

from typing import cast

from torch import Tensor

from diffusion_cli.parametrisations import Parametrisation, parametrisations
from diffusion_cli.parametrisations.second import Second, noise_of, positive
from diffusion_cli.processes import Process
from diffusion_cli.processes.affine import Affine, Diffusion


@parametrisations("sn")
class SN(Second):
    """The second output is the squared noise: the optimum if the mean is exact.

    C = (sigma / alpha)^2 (h - e^2),   h = softplus(F)

    `objective=second_moment` fits h to E[n^2 | x_t]; e is the noise that belongs to the
    mean. C is clamped between 0 and (sigma / alpha)^2. On a finished run, whose every
    other weight stays as it is:

        dcli train ... parametrisation=sn parametrisation.mean.name=eps \\
            objective=second_moment init=RUN trainable='network.second*'

    Reference: Bao et al. 2022, section 3 (SN-DPM), arXiv:2206.07309.

    Args:
        mean: How the first output is read; as in the run that is finished.
        bound: Largest variance C, ((high - low) / 2)^2 for data in [low, high].
    """

    second = "moment"

    def __init__(self, mean: Parametrisation, bound: float | None = None) -> None:
        super().__init__(mean, bound)

    def fits(self, process: Process) -> str | None:
        if not cast(Affine, process).bounded:
            return "is undefined at t = 1, where this path keeps no signal (alpha = 0)"
        return super().fits(process)

    def variance(
        self, second: Tensor, mean: Tensor, x: Tensor, t: Tensor, process: Diffusion
    ) -> Tensor:
        k = process.at(t, x)
        left = positive(second) - noise_of(x, mean, t, process).square()
        most = self.limits(x, t, process).most
        return ((k.sigma / k.alpha) ** 2 * left).clamp(min=0).minimum(most)

    def moment(
        self, out: Tensor, x: Tensor, t: Tensor, noise: Tensor, process: Process
    ) -> tuple[Tensor, Tensor]:
        return positive(out.chunk(2, dim=1)[1]), noise.square()
