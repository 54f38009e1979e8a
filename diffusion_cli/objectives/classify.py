"""The objective of a classifier that knows noise."""

from __future__ import annotations

from torch import Tensor

from diffusion_cli.denoiser import Model
from diffusion_cli.objectives import Objective, TimeLaw, objectives
from diffusion_cli.processes import Process
from diffusion_cli.rng import Rng


@objectives("classify")
class Classify(Objective):
    """Cross-entropy of the label given the noisy sample; the network is not told it.

    loss = -log p(y | x_t),   t ~ `time`

    The run is no model to sample from; it guides one, `guidance=classifier`.

    Reference: Dhariwal and Nichol 2021, section 4, arXiv:2105.05233.

    Args:
        time: The law of the training times.
    """

    about = "label"

    def __init__(self, time: TimeLaw) -> None:
        super().__init__()
        self.time = time
        self.times: Tensor | None = None

    @property
    def needs(self) -> type[Process]:  # type: ignore[override]  # the time law's
        """What the time law asks of the process."""
        return self.time.needs

    def forward(self, model: Model, x0: Tensor, rng: Rng, **cond: Tensor) -> Tensor:
        process = model.process
        t = self.time(process, rng.child("time"))
        noise = process.noise(x0, rng.child("corruption"))
        told = {name: value for name, value in cond.items() if name != "label"}
        q = model(process.corrupt(x0, t, noise), t, **told)
        losses = q.nll(cond["label"][:, None]).squeeze(1) * self.time.correction(t)
        self.times = t
        return losses.float()  # type: ignore[no-any-return]

    def observe(self, process: Process, t: Tensor, losses: Tensor) -> None:
        self.time.observe(process, t, losses / self.time.correction(t))
