"""A network that maps a state to data and does not know the time."""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion_cli.core import Point
from diffusion_cli.parametrisations import Parametrisation, parametrisations
from diffusion_cli.processes import Process


@parametrisations("direct")
class Direct(Parametrisation):
    """F is the clean sample, of the state as it is, at every time: x_0 = F(x).

    Reference: Shocher et al. 2024, section 2, arXiv:2311.01462.
    """

    def inputs(self, x: Tensor, t: Tensor, process: Process) -> tuple[Tensor, Tensor]:
        return x, torch.zeros_like(t)

    def posterior(self, out: Tensor, x: Tensor, t: Tensor, process: Process) -> Point:
        return Point(out)
