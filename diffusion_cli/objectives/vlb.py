"""The variational bound itself, as diffusion models were first meant to be trained."""

from __future__ import annotations

from torch import Tensor

from diffusion_cli.couplings import Coupling
from diffusion_cli.denoiser import Model
from diffusion_cli.objectives import TimeLaw, objectives
from diffusion_cli.objectives.bound import bound
from diffusion_cli.objectives.noisy import NoisyObjective, diffusion
from diffusion_cli.rng import Rng


@objectives("vlb")
class VLB(NoisyObjective):
    """The variational bound on -log p(x_0), one step of the chain per sample.

    loss = T (KL(q(x_s | x_t, x_0) || p(x_s | x_t)) or decoder),   s = t - 1/T

    In nats per coordinate, without the prior's term, in which nothing is trained. A
    belief without a variance makes steps of DDPM's small variance.

    Reference: Ho et al. 2020, eq. 5, arXiv:2006.11239; Nichol and Dhariwal 2021,
        section 3.3, arXiv:2102.09672.

    Args:
        time: The law of the training times; `loss_aware` tames the variance of the sum.
        drop: Probability with which a label is left out, for classifier-free guidance.
    """

    def __init__(self, time: TimeLaw, coupling: Coupling, drop: float = 0.0) -> None:
        super().__init__(time, coupling, drop)

    def forward(self, model: Model, x0: Tensor, rng: Rng, **cond: Tensor) -> Tensor:
        x0, _, x, t, cond = self.draw(model, x0, rng, cond)
        q = model(x, t, **cond)
        return self.corrected(bound(q, x0, t, diffusion(model), model.spec), t)
