"""Classifier-free guidance."""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion_cli.core import Posterior
from diffusion_cli.denoiser import Denoiser
from diffusion_cli.guidance import guidances
from diffusion_cli.guidance.contrast import Contrast


@guidances("cfg")
class CFG(Contrast):
    """Extrapolates from the belief without the label to the belief with it.

    q = q_none + scale (q_label - q_none); both in one batched evaluation.

    `scale` 0 is unconditional, 1 conditional; the paper's w is scale - 1. The model
    must have been trained with `objective.drop` > 0. Outside an interval of noise
    levels only the belief with the label is computed (Kynkaanniemi et al. 2024,
    section 3, arXiv:2404.07724).

    Reference: Ho and Salimans 2022, eq. 6, arXiv:2207.12598.

    Args:
        scale: How far to go.
        low: Smallest sigma / alpha with guidance.
        high: Largest sigma / alpha with guidance; null is no limit.
    """

    labelled = True

    def __init__(
        self,
        denoiser: Denoiser,
        scale: float = 2.0,
        low: float = 0.0,
        high: float | None = None,
    ) -> None:
        super().__init__(denoiser, scale, low, high)

    def start(self, x: Tensor, t: Tensor, **cond: Tensor) -> Posterior:
        cond["label"] = torch.full_like(cond["label"], -1)
        return self.goal(x, t, **cond)

    def goal(self, x: Tensor, t: Tensor, **cond: Tensor) -> Posterior:
        return self.inner(x, t, **cond)  # type: ignore[no-any-return]

    def both(self, x: Tensor, t: Tensor, **cond: Tensor) -> tuple[Posterior, Posterior]:
        both = {name: torch.cat((value, value)) for name, value in cond.items()}
        both["label"] = torch.cat((torch.full_like(cond["label"], -1), cond["label"]))
        twice = t if t.ndim == 0 else torch.cat((t, t))
        without, with_label = self.goal(torch.cat((x, x)), twice, **both).chunk(2)
        return without, with_label
