"""Samples to look at while a run trains."""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion_cli.assemble import Parts
from diffusion_cli.rng import Rng
from diffusion_cli.stop import Stop

_IMAGES, _POINTS = 64, 2000  # how many make a picture


@torch.no_grad()
def preview(parts: Parts, seed: int, device: torch.device, stop: Stop) -> Tensor | None:
    """Samples of the model as it is, the same seeds each time; None if interrupted.

    Classes take turns; guidance and sampler are the run's own.
    """
    process, spec = parts.model.process, parts.model.spec
    count = _IMAGES if len(spec.shape) > 1 else _POINTS
    rows = torch.arange(count, device=device)
    rng = Rng(seed, rows).child("preview")
    x = process.prior((count, *process.state(spec).shape), rng.child("prior"))
    cond = {"label": rows % spec.classes} if spec.classes else {}
    walk = parts.sampler.trajectory(parts.denoiser.given(**cond), x, rng)
    for state in walk:
        if stop.requested:
            return None
        x = state
    return x
