"""Autoguidance: away from a worse version of the model."""

from __future__ import annotations

from typing import cast

from torch import Tensor

from diffusion_cli.core import Posterior
from diffusion_cli.denoiser import Context, Denoiser
from diffusion_cli.errors import ConfigError
from diffusion_cli.guidance import guidances
from diffusion_cli.guidance.contrast import Contrast
from diffusion_cli.guidance.others import agree, carried, data_of
from diffusion_cli.processes.affine import Affine


@guidances("auto")
class Auto(Contrast):
    """Extrapolates from the belief of a worse run to the belief of this one.

    q = q_worse + scale (q_this - q_worse)

    The other run is smaller or less trained; its schedule may differ, since it is asked
    at the same sigma / alpha. Both are told the same label.

    Reference: Karras et al. 2024, eq. 3, arXiv:2406.02507.

    Args:
        run: The worse run: a folder, or the beginning of its name.
        scale: How far to go; 1 is this model alone.
        low: Smallest sigma / alpha with guidance.
        high: Largest sigma / alpha with guidance; null is no limit.
    """

    needs = Affine

    def __init__(
        self,
        denoiser: Denoiser,
        context: Context,
        run: str,
        scale: float = 2.0,
        low: float = 0.0,
        high: float | None = None,
    ) -> None:
        super().__init__(denoiser, scale, low, high)
        self.worse = context.model(run)
        if self.worse.parametrisation.about != "x0":
            raise ConfigError(
                f"guidance.run: `{run}` is a classifier; it believes nothing about x_0",
                f"guidance=classifier guidance.run={run}",
            )
        agree(denoiser, self.worse, run)
        if self.worse.spec.classes not in (0, data_of(denoiser).classes):
            raise ConfigError(
                f"guidance.run: `{run}` knows {self.worse.spec.classes} labels, "
                f"the model {data_of(denoiser).classes}",
                "guidance.run=<a run on the same data>",
            )

    def start(self, x: Tensor, t: Tensor, **cond: Tensor) -> Posterior:
        there = cast(Affine, self.worse.process)
        x, t = carried(x, t, cast(Affine, self.process), there)
        return self.worse(x, t, **cond)  # type: ignore[no-any-return]

    def goal(self, x: Tensor, t: Tensor, **cond: Tensor) -> Posterior:
        return self.inner(x, t, **cond)  # type: ignore[no-any-return]

    def both(self, x: Tensor, t: Tensor, **cond: Tensor) -> tuple[Posterior, Posterior]:
        return self.start(x, t, **cond), self.goal(x, t, **cond)
