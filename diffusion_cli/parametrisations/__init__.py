"""Parametrisations: what the raw output of a network means."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

from torch import Tensor

from diffusion_cli.core import Posterior, Spec
from diffusion_cli.processes import Process
from diffusion_cli.registry import Registry


class Parametrisation(ABC):
    """What a network sees of (x_t, t), and what its output F says about x_0."""

    needs: ClassVar[type[Process]] = Process
    about: ClassVar[Literal["x0", "label"]] = "x0"  # what its belief is about
    second: ClassVar[Literal["", "variance", "moment"]] = ""  # of a second output
    own: ClassVar[bool] = False  # whether its output has an error of its own: `errors`

    timeless: bool = False  # whether the network does not see the time

    def fits(self, process: Process) -> str | None:
        """Why this reading is not defined for `process`, or None."""
        return None

    def out(self, state: Spec) -> tuple[int, ...]:
        """Shape of the network's output for one sample; by default the state's.

        A second read-out doubles the first size: networks give it a head of its own.
        """
        return state.shape

    @abstractmethod
    def inputs(self, x: Tensor, t: Tensor, process: Process) -> tuple[Tensor, Tensor]:
        """The scaled state, and the level as a number of order one, () or (B,)."""

    @abstractmethod
    def posterior(
        self, out: Tensor, x: Tensor, t: Tensor, process: Process
    ) -> Posterior:
        """The belief, in the precision of `x` (float32 or float64)."""

    def moment(
        self, out: Tensor, x: Tensor, t: Tensor, noise: Tensor, process: Process
    ) -> tuple[Tensor, Tensor]:
        """A predicted second moment and a draw of it, if `second` is a moment."""
        raise NotImplementedError

    def errors(
        self, out: Tensor, mean: Tensor, x: Tensor, t: Tensor, process: Process
    ) -> Tensor:
        """Squared errors (B,) against the output that stands for `mean`, if `own`."""
        raise NotImplementedError


parametrisations: Registry[Parametrisation] = Registry(
    "parametrisation", Parametrisation, __name__
)
