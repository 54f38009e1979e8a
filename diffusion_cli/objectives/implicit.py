"""Score matching with the exact trace."""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion_cli.couplings import Coupling
from diffusion_cli.denoiser import Model
from diffusion_cli.objectives import TimeLaw, Weight, objectives
from diffusion_cli.objectives.matching import ScoreMatching, product
from diffusion_cli.rng import Rng

MOST = 16  # coordinates: each costs a backward pass


@objectives("implicit")
class Implicit(ScoreMatching):
    """Implicit score matching: the trace exactly, coordinate by coordinate.

    tr dr/dx = sum_i e_i^T dr/dx e_i

    For data of up to 16 coordinates. The mean loss is that of `denoise`.

    Reference: Hyvarinen 2005, eq. 4, "Estimation of non-normalized statistical models
        by score matching".

    Args:
        weight: w(t), on the squared error of x_0.
        time: The law of the training times.
        drop: Probability with which a label is left out, for classifier-free guidance.
    """

    def __init__(
        self, weight: Weight, time: TimeLaw, coupling: Coupling, drop: float = 0.0
    ) -> None:
        super().__init__(weight, time, coupling, drop)

    def fits(self, model: Model) -> str | None:
        if (d := model.spec.numel) > MOST:
            passes = f"takes a backward pass for each of {d} coordinates"
            return f"{passes}, {MOST} at most; sliced takes one"
        return super().fits(model)

    def parts(self, r: Tensor, x: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
        axes = torch.eye(x[0].numel(), dtype=x.dtype, device=x.device)
        ways = [axis.reshape(x.shape[1:]).expand_as(x) for axis in axes]
        trace = torch.stack([product(r, x, v) for v in ways]).sum(0)
        return r.flatten(1).square().sum(1), trace
