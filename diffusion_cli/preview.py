"""Samples to look at while a run trains."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from diffusion_cli.assemble import Parts
from diffusion_cli.device import memory
from diffusion_cli.errors import OutOfMemory
from diffusion_cli.rng import Rng
from diffusion_cli.state import State
from diffusion_cli.stop import Stop
from diffusion_cli.tracking import say

_IMAGES, _POINTS = 64, 2000  # how many make a picture


def previews(
    state: State, parts: Parts, seed: int, device: torch.device, stop: Stop
) -> Iterator[tuple[str, Tensor]]:
    """Samples of the averaged (`ema`) and of the raw weights, the same seeds each time.

    Classes take turns; guidance and sampler are the run's own. It ends early if it is
    interrupted or if they do not fit into memory.
    """
    steps = parts.sampler.steps or "adaptive"
    for weights in ("ema", "raw") if state.averages else ("raw",):
        say(f"drawing a preview of the {weights} weights, {steps} steps")
        try:
            with (
                memory(f"preview at step {state.step}", ""),
                state.averaged(weights),
            ):
                x = _drawn(parts, seed, device, stop)
        except OutOfMemory as error:
            say(f"{error.message}; training goes on without it")
            return
        if x is None:
            return
        yield weights, x


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
