"""Classifier-free guidance."""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion_cli.core import Posterior
from diffusion_cli.denoiser import Denoiser
from diffusion_cli.guidance import guidances
from diffusion_cli.settings import require


@guidances("cfg")
class CFG(Denoiser):
    """Extrapolates from the belief without the label to the belief with it.

    q = q_none + scale (q_label - q_none); both in one batched evaluation.

    `scale` 0 is unconditional, 1 conditional; the paper's w is scale - 1. The model
    must have been trained with `objective.drop` > 0.

    Reference: Ho and Salimans 2022, eq. 6, arXiv:2207.12598.

    Args:
        scale: How far to go.
    """

    labelled = True

    def __init__(self, denoiser: Denoiser, scale: float = 2.0) -> None:
        super().__init__()
        require(scale >= 0, "scale", scale, ">= 0")
        self.inner, self.scale, self.process = denoiser, scale, denoiser.process

    def forward(self, x: Tensor, t: Tensor, **cond: Tensor) -> Posterior:
        if self.scale == 1:
            return self.inner(x, t, **cond)  # type: ignore[no-any-return]
        both = {name: torch.cat((value, value)) for name, value in cond.items()}
        both["label"] = torch.cat((torch.full_like(cond["label"], -1), cond["label"]))
        twice = t if t.ndim == 0 else torch.cat((t, t))
        q: Posterior = self.inner(torch.cat((x, x)), twice, **both)
        without, with_label = q.chunk(2)
        return without.toward(with_label, self.scale)
