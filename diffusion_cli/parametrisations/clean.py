"""The plainest reading of a network: what it says is the clean sample."""

from __future__ import annotations

from torch import Tensor

from diffusion_cli.core import Point
from diffusion_cli.parametrisations import Parametrisation, parametrisations
from diffusion_cli.processes import Process


@parametrisations("clean")
class Restored(Parametrisation):
    """F is the clean sample, x_0 = F, for any process; the network sees x_t and t.

    On an affine path it is `x0` without its scaling of the state.

    Reference: Bansal et al. 2022, eq. 1, arXiv:2208.09392.
    """

    def fits(self, process: Process) -> str | None:
        if process.kind == "continuous":
            return None
        return "tells real numbers, not tokens"

    def inputs(self, x: Tensor, t: Tensor, process: Process) -> tuple[Tensor, Tensor]:
        return x, t

    def posterior(self, out: Tensor, x: Tensor, t: Tensor, process: Process) -> Point:
        return Point(out)
