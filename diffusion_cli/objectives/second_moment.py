"""Train a head that predicts a second moment, beside a mean that stays as it is."""

from __future__ import annotations

from torch import Tensor

from diffusion_cli.couplings import Coupling
from diffusion_cli.denoiser import Model
from diffusion_cli.objectives import TimeLaw, objectives
from diffusion_cli.objectives.noisy import NoisyObjective
from diffusion_cli.rng import Rng


@objectives("second_moment")
class SecondMoment(NoisyObjective):
    """The squared error of a second moment of the noise: `npr` and `sn` name which.

    loss = mean over coordinates of (g - (n - e)^2)^2  (npr)   or   (h - n^2)^2  (sn)

    Only the second output learns from it; the mean is to be finished, so freeze what it
    is made of: init=RUN trainable='network.second*'.

    Reference: Bao et al. 2022, sections 3 and 4, arXiv:2206.07309.

    Args:
        time: The law of the training times.
        drop: Probability with which a label is left out, as in the finished run.
    """

    def __init__(self, time: TimeLaw, coupling: Coupling, drop: float = 0.0) -> None:
        super().__init__(time, coupling, drop)

    def fits(self, model: Model) -> str | None:
        if model.parametrisation.second == "moment":
            return None
        return "trains a second moment, which only npr and sn predict"

    def forward(self, model: Model, x0: Tensor, rng: Rng, **cond: Tensor) -> Tensor:
        x0, noise, x, t, cond = self.draw(model, x0, rng, cond)
        out = model.output(x, t, **cond)
        reading = model.parametrisation
        predicted, drawn = reading.moment(out, x, t, noise, model.process)
        losses = (predicted - drawn).square().flatten(1).mean(1)
        return self.corrected(losses, t)
