"""What training leaves behind about its own errors: one number per cell of time."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diffusion_cli.processes import Process
from diffusion_cli.processes.affine import Affine

CELLS = 100
HALF_LIFE = 2**17  # samples; ours
RAMP = 0.1  # a half-life is at most this part of the samples seen; ours


class ErrorRecord(nn.Module):
    """The squared error of the mean, per coordinate, in even cells of (0, 1].

    Kept as (SNR + 1) |x_0 - mean|^2, the error of v, which is of order one from data
    to prior. Old samples are forgotten exponentially. Only an affine path has an SNR:
    for other processes nothing is kept.
    """

    cells: Tensor
    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        # weights of samples, of their times and of their errors, summed
        self.register_buffer("cells", torch.zeros(3, CELLS, dtype=torch.float64))
        self.register_buffer("seen", torch.zeros((), dtype=torch.float64))

    @torch.no_grad()
    def update(self, process: Process, t: Tensor, errors: Tensor) -> None:
        """Count a whole step: times and squared errors of x_0, (B,) each."""
        if not isinstance(process, Affine):
            return
        k = process.scales(t)
        errors = errors.double() * (1 + (k.alpha / k.sigma) ** 2)
        known = errors.isfinite()  # not where a weight is 0
        place = (t * CELLS).ceil().long().clamp(1, CELLS) - 1
        # a product and no scattered sum, whose order of terms a GPU does not promise
        inside = torch.arange(CELLS, device=t.device)[:, None] == place  # (CELLS, B)
        inside = (inside & known).double()
        values = torch.stack((torch.ones_like(t), t, errors.where(known, 0)))
        half_life = (RAMP * self.seen).clamp(max=HALF_LIFE)
        self.cells.mul_(0.5 ** (len(t) / half_life)).add_(values @ inside.T)
        self.seen.add_(len(t))
