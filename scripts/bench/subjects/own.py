"""dcli itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_cli.core import Spec
from diffusion_cli.denoiser import Model
from diffusion_cli.networks import Network
from diffusion_cli.parametrisations import parametrisations
from diffusion_cli.processes import processes
from diffusion_cli.rng import Rng
from diffusion_cli.samplers import samplers

IMAGE = Spec((3, 32, 32))


class Constant(Network):
    """A network that costs nothing: the same output every time."""

    def __init__(self, batch: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.out = torch.randn(batch, *IMAGE.shape)

    def forward(self, x: Tensor, level: Tensor, **cond: Tensor) -> Tensor:
        return self.out


def loop(
    sampler: dict[str, Any],
    schedule: str = "linear",
    parametrisation: str = "eps",
    steps: int = 50,
    batch: int = 1,
) -> Callable[[], dict[str, float]]:
    """Every step of a sampler, around a network that costs nothing."""
    process = processes.build({"name": "gaussian", "schedule": {"name": schedule}})
    reading = parametrisations.build({"name": parametrisation})
    model = Model(process, Constant(batch), reading, IMAGE).eval()
    walker = samplers.build(sampler | {"steps": steps})
    rng = Rng(0, torch.arange(batch)).child("sample")
    start = process.prior((batch, *IMAGE.shape), rng)

    def once() -> None:
        for _ in walker.trajectory(model, start, rng):
            pass

    return once
