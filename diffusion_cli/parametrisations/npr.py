"""A head that learns how wrong the mean is."""

from __future__ import annotations

from torch import Tensor

from diffusion_cli.parametrisations import Parametrisation, parametrisations
from diffusion_cli.parametrisations.second import Second, noise_of, positive
from diffusion_cli.processes import Process
from diffusion_cli.processes.affine import Diffusion


@parametrisations("npr")
class NPR(Second):
    """The second output is the squared error of the noise: the optimum for this mean.

    C = (sigma / alpha)^2 g,   g = softplus(F) alpha^2 / (alpha^2 + sigma^2)

    `objective=second_moment` fits g to E[(n - e)^2 | x_t], where e is the noise that
    belongs to the mean. F = 0 is softplus(log(e - 1)) = 1: DDPM's large variance. On a
    finished run, whose every other weight stays as it is:

        dcli train ... parametrisation=npr parametrisation.mean.name=eps \\
            objective=second_moment init=RUN trainable='network.second*'

    Reference: Bao et al. 2022, section 4 (NPR-DPM), arXiv:2206.07309.

    Args:
        mean: How the first output is read; as in the run that is finished.
        bound: Largest variance C, ((high - low) / 2)^2 for data in [low, high].
    """

    second = "moment"

    def __init__(self, mean: Parametrisation, bound: float | None = None) -> None:
        super().__init__(mean, bound)

    def variance(
        self, second: Tensor, mean: Tensor, x: Tensor, t: Tensor, process: Diffusion
    ) -> Tensor:
        large, most = self.limits(x, t, process)
        return (large * positive(second)).minimum(most)

    def moment(
        self, out: Tensor, x: Tensor, t: Tensor, noise: Tensor, process: Process
    ) -> tuple[Tensor, Tensor]:
        first, second = out.chunk(2, dim=1)
        mean = self.mean.posterior(first, x, t, process).mean
        assert isinstance(process, Diffusion)
        k = process.at(t, x)
        g = positive(second) * k.alpha**2 / (k.alpha**2 + k.sigma**2)
        return g, (noise - noise_of(x, mean, t, process)).square()
