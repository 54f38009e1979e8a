"""The objective of improved DDPM: the mean by its error, the variance by the bound."""

from __future__ import annotations

from torch import Tensor

from diffusion_cli.couplings import Coupling
from diffusion_cli.denoiser import Model
from diffusion_cli.objectives import TimeLaw, Weight, objectives
from diffusion_cli.objectives.bound import bound
from diffusion_cli.objectives.noisy import NoisyObjective, diffusion
from diffusion_cli.rng import Rng
from diffusion_cli.settings import require


@objectives("hybrid")
class Hybrid(NoisyObjective):
    """The weighted squared error of the mean, and the bound for the variance.

    loss = w(t) |x_0 - mean|^2 + vlb L(N(stopped mean, C)),   means over coordinates

    L is the bound's term at t times the number of steps, in nats per coordinate, and
    the mean is stopped inside it: the bound teaches the variance alone. (The authors'
    code counts bits, which makes its factor larger by 1 / log 2.)

    Reference: Nichol and Dhariwal 2021, eq. 16, arXiv:2102.09672.

    Args:
        weight: w(t), on the squared error of x_0.
        time: The law of the training times.
        vlb: Factor of the bound.
        drop: Probability with which a label is left out, for classifier-free guidance.
    """

    def __init__(
        self,
        weight: Weight,
        time: TimeLaw,
        coupling: Coupling,
        vlb: float = 1e-3,
        drop: float = 0.0,
    ) -> None:
        super().__init__(time, coupling, drop)
        require(vlb > 0, "vlb", vlb, "> 0")
        self.weight, self.vlb = weight, vlb

    def fits(self, model: Model) -> str | None:
        if model.parametrisation.second:
            return None
        return "trains a variance, which only learned, npr and sn predict"

    def forward(self, model: Model, x0: Tensor, rng: Rng, **cond: Tensor) -> Tensor:
        x0, _, x, t, cond = self.draw(model, x0, rng, cond)
        q = model(x, t, **cond)
        error = (x0 - q.mean).square().flatten(1).mean(1)
        stopped = q.around(q.mean.detach())
        rest = bound(stopped, x0, t, diffusion(model), model.spec)
        losses = self.weight(model.process, t) * error + self.vlb * rest
        return self.corrected(losses, t)
