"""Samplers walk a denoiser from t = 1 to t = 0; grids say where the steps fall."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar

from torch import Tensor

from diffusion_cli.denoiser import Denoiser
from diffusion_cli.processes import Process
from diffusion_cli.registry import Registry
from diffusion_cli.rng import Rng


class Grid(ABC):
    """Where the steps fall."""

    needs: ClassVar[type[Process]] = Process

    @abstractmethod
    def __call__(self, process: Process, steps: int) -> Tensor:
        """Falling times (steps + 1,), float64 on the CPU, ending at exactly 0."""


class Sampler(ABC):
    """One loop from t = 1 to t = 0.

    Every state is yielded, so bars, films and early stops belong to the caller. The
    last step ends at exactly t = 0.
    """

    steps: int = 0  # 0: it chooses its own
    order: int = 1  # claimed order of convergence; tested
    own: bool = False  # whether its steps are the process's own: they use variances
    draws: bool = False  # whether they are, and have a variance whatever the belief
    timeless: bool = False  # whether it needs beliefs that are the same at all times

    @property
    def needs(self) -> type[Process]:
        """What the process must offer."""
        return Process

    @property
    def noisy(self) -> bool:
        """Whether its steps draw random numbers."""
        return self.draws

    def calls(self, steps: int) -> int:
        """Number of denoiser calls in `steps` steps."""
        return steps

    def check(self, process: Process) -> None:  # optional
        """Raise a `ConfigError` for a process that `needs` alone cannot rule out."""
        return

    def counted(self) -> dict[str, int]:
        """What else it counted so far, such as rejected steps."""
        return {}

    @abstractmethod
    def trajectory(self, denoiser: Denoiser, x: Tensor, rng: Rng) -> Iterator[Tensor]:
        """Yield the state after every step, from x_1 = `x`; `rng` has a row each."""


grids: Registry[Grid] = Registry("grid", Grid, __name__, given=("context",))
samplers: Registry[Sampler] = Registry("sampler", Sampler, __name__)
