"""The absolute error of the clean data."""

from __future__ import annotations

from torch import Tensor

from diffusion_cli.couplings import Coupling
from diffusion_cli.denoiser import Model
from diffusion_cli.objectives import TimeLaw, objectives
from diffusion_cli.objectives.noisy import NoisyObjective
from diffusion_cli.processes import Process
from diffusion_cli.rng import Rng


@objectives("l1")
class Absolute(NoisyObjective):
    """L1: -log q(x_0 | x_t) of a Laplace law around the belief, for any process.

    loss = mean over coordinates of |x_0 - m|,   t ~ `time`

    The best m is then the median of each coordinate, not its mean.

    Reference: Bansal et al. 2022, eq. 1, arXiv:2208.09392.

    Args:
        time: The law of the training times.
        drop: Probability with which a label is left out, for classifier-free guidance.
    """

    def __init__(self, time: TimeLaw, coupling: Coupling, drop: float = 0.0) -> None:
        super().__init__(time, coupling, drop)

    @property
    def needs(self) -> type[Process]:  # type: ignore[override]  # the time law's
        """What the time law asks of the process."""
        return self.time.needs

    def fits(self, model: Model) -> str | None:
        if model.process.kind != "continuous":
            return "measures real numbers, the process has tokens"
        if model.parametrisation.second:
            return "trains no variance; hybrid, vlb and second_moment do"
        return None

    def forward(self, model: Model, x0: Tensor, rng: Rng, **cond: Tensor) -> Tensor:
        x0, _, x, t, cond = self.draw(model, x0, rng, cond)
        losses = (x0 - model(x, t, **cond).mean).abs().flatten(1).mean(1)
        return self.corrected(losses, t)
