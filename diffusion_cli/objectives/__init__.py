"""Objectives: what is minimised; with its two small roles, weights and time laws."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

from torch import Tensor, nn

from diffusion_cli.denoiser import Model
from diffusion_cli.processes import Process
from diffusion_cli.registry import Registry
from diffusion_cli.rng import Rng


class Objective(nn.Module, ABC):
    """A loss per sample. Buffers are state and travel in the checkpoint."""

    needs: type[Process] = Process
    about: Literal["x0", "label"] = "x0"  # what it teaches the model to know
    reference: int = 0  # extra samples per step, given to `forward` by that name
    independent: bool = False  # whether noise and data have to be so
    plain: bool = False  # whether attention must be plain: it is differentiated twice

    def fits(self, model: Model) -> str | None:
        """Why it cannot train what the model's parametrisation predicts, or None."""
        return None

    @abstractmethod
    def forward(self, model: Model, x0: Tensor, rng: Rng, **cond: Tensor) -> Tensor:
        """Losses of shape (B,), float32; the times it drew stay in `self.times`."""

    def observe(self, process: Process, t: Tensor, losses: Tensor) -> None:  # optional
        """Learn from a whole step: its times and losses, (B,) each, however split."""


class Weight(ABC):
    """A weight w(t) on the squared error of x_0."""

    needs: ClassVar[type[Process]] = Process

    @abstractmethod
    def __call__(self, process: Process, t: Tensor) -> Tensor:
        """The weights at times (B,), float64."""


class TimeLaw(nn.Module, ABC):
    """The density from which training times are drawn."""

    needs: ClassVar[type[Process]] = Process

    @abstractmethod
    def forward(self, process: Process, rng: Rng) -> Tensor:
        """One time per row of `rng`: (B,), float64, inside `process.span`."""

    def correction(self, t: Tensor) -> Tensor | float:
        """Importance weight that undoes the law's preference; 1 where none is meant."""
        return 1.0

    def observe(self, process: Process, t: Tensor, losses: Tensor) -> None:  # optional
        """Learn from the losses (B,) of a whole step at times (B,), uncorrected."""


objectives: Registry[Objective] = Registry(
    "objective", Objective, __name__, given=("coupling",)
)
weights: Registry[Weight] = Registry("weight", Weight, __name__)
times: Registry[TimeLaw] = Registry("time", TimeLaw, __name__)
