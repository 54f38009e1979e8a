"""dcli's samples, with a network that costs what networks cost."""

from __future__ import annotations

from collections.abc import Callable

import torch

from diffusion_cli import device as devices
from diffusion_cli.rng import Rng
from subjects.own_training import IMAGE, parts

Once = Callable[[], None]


def draw(words: list[str], batch: int) -> Once:
    """Samples as `dcli sample` draws them, in the precision that it chooses."""
    built = parts([*words, "sampler=ddim"])
    device, model = torch.device("cpu"), built.model
    model.onto(device).eval().requires_grad_(False)
    model.around = devices.autocast(device, devices.precision(device, "auto"))
    rng = Rng(0, torch.arange(batch)).child("sample")
    start = model.process.prior((batch, *IMAGE.shape), rng)

    def once() -> None:
        for _ in built.sampler.trajectory(model, start, rng):
            pass

    return once
