"""Samples to look at while a run trains."""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion_cli.assemble import Parts
from diffusion_cli.errors import OutOfMemory
from diffusion_cli.rng import Rng
from diffusion_cli.stop import Stop
from diffusion_cli.tracking import say
from diffusion_cli.trainer import memory

_IMAGES, _POINTS = 64, 2000  # how many make a picture


def preview(
    parts: Parts, seed: int, step: int, device: torch.device, stop: Stop
) -> Tensor | None:
    """Samples of the model as it is, the same seeds each time.

    Classes take turns; guidance and sampler are the run's own. None if it was
    interrupted or did not fit into memory.
    """
    say(f"drawing a preview, {parts.sampler.steps or 'adaptive'} steps")
    try:
        with memory(f"preview at step {step}", ""):
            return _drawn(parts, seed, device, stop)
    except OutOfMemory as error:
        say(f"{error.message}; training goes on without it")
        return None


@torch.no_grad()
def _drawn(parts: Parts, seed: int, device: torch.device, stop: Stop) -> Tensor | None:
    process, spec = parts.model.process, parts.model.spec
    count = _POINTS if spec.points else _IMAGES
    rows = torch.arange(count, device=device)
    rng = Rng(seed, rows).child("preview")
    x = process.prior((count, *process.state(spec).shape), rng)
    cond = {"rows": rows}
    if spec.classes:
        cond["label"] = rows % spec.classes
    walk = parts.sampler.trajectory(parts.denoiser.given(**cond), x, rng)
    for state in walk:
        if stop.requested:
            return None
        x = state
    return x
