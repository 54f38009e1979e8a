"""Churn: the noise in the state is the noise that its time stands for."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from choices import node, options

from diffusion_cli.processes import processes
from diffusion_cli.processes.affine import Diffusion
from diffusion_cli.rng import Rng
from diffusion_cli.samplers.ode import Heun
from diffusion_cli.samplers.spacing import Uniform

DIFFUSIONS = [
    name
    for name in options("process")
    if issubclass(processes[node("process", name)["name"]], Diffusion)
]


@pytest.mark.parametrize("at", [0.5, 1.0])
@pytest.mark.parametrize("name", DIFFUSIONS)
def test_churned_noise_is_that_of_its_time(name: str, at: float) -> None:
    process = cast(Diffusion, processes.build(node("process", name)))
    rng, t = Rng(0, torch.arange(20_000)), torch.tensor(at, dtype=torch.float64)
    x = process.schedule(t).sigma * rng.child("x").normal((20_000, 2))
    raised, later = Heun(Uniform(), steps=2, churn=1.0).raised(process, x, t, rng)
    assert later >= t
    assert float(raised.std() / process.schedule(later).sigma) == pytest.approx(1, 0.02)
