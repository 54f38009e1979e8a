"""What laws of the training times share: quantiles, and times that spread evenly."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from diffusion_cli.objectives import TimeLaw
from diffusion_cli.processes import Process
from diffusion_cli.rng import Rng

GOLDEN = 0.6180339887498949  # its multiples modulo 1 fill the unit interval most evenly


class Quantile(TimeLaw):
    """A law given by its quantile function.

    Stratified times share one offset per step: u_i = frac(u + i / golden ratio). Every
    stretch of samples then covers the unit interval evenly, however a batch is split.
    """

    def __init__(self, stratified: bool = False) -> None:
        super().__init__()
        self.stratified = stratified

    def forward(self, process: Process, rng: Rng) -> Tensor:
        if self.stratified:
            offset = rng.shared().child("offset").uniform((1,))
            u = (offset + rng.rows.double() * GOLDEN).frac()
        else:
            u = rng.uniform((len(rng),))
        return self.quantile(process, u).clamp(*process.span)

    @abstractmethod
    def quantile(self, process: Process, u: Tensor) -> Tensor:
        """The time below which a part `u` of the law lies; (B,) float64."""
