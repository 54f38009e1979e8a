"""Processes: how data is spoilt, where that ends, and how one step is undone.

Time runs from t = 0, data, to t = 1, the prior. What a process can do is its abstract
ancestor, Process > Flow > Affine > Diffusion; others name the one they need.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

from diffusion_cli.core import Posterior, Spec
from diffusion_cli.errors import ConfigError
from diffusion_cli.registry import Registry
from diffusion_cli.rng import Rng


class Process(nn.Module, ABC):
    """A forward process x_0 -> x_t. A module: fitted statistics reach the checkpoint.

    `t` is () or (B,), float64; a time of shape () holds for the whole batch. A
    constructor that must know the data (how many tokens there are) names `data: Spec`.
    """

    span: tuple[float, float] = (0.0, 1.0)  # times at which the process is well defined
    kind: Literal["continuous", "tokens"] = "continuous"  # of the data it spoils
    apart: str = "a mixture of two draws of this prior is no draw of it"
    levels: int | None = (
        None  # number of times it knows, 1/levels .. 1; None: all times
    )
    told: bool = True  # whether x_t tells all that a reverse step must know

    def state(self, data: Spec) -> Spec:
        """What x_t looks like; by default, like the data."""
        return data

    def fit(self, batches: Iterable[Tensor]) -> None:  # optional
        """Learn the statistics of the prior from data; called by a fresh run only."""

    def ready(self) -> None:  # optional
        """Look for the files that `fit` reads; a missing one is an error."""

    @abstractmethod
    def noise(self, x0: Tensor, rng: Rng) -> Tensor:
        """All randomness of one corruption, a row per sample."""

    @abstractmethod
    def corrupt(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t = F_t(x_0, noise): deterministic."""

    def noise_to_signal(self, t: Tensor) -> Tensor | None:
        """sigma / alpha at the times `t`; None where there is no such number."""
        return None

    def aim(self, x0: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """What a belief is to be the mean of: x_0, unless paths from it are curved."""
        return x0

    @abstractmethod
    def prior(self, shape: Sequence[int], rng: Rng) -> Tensor:
        """Draw x_1, of shape (B, ...).

        The steps of its trajectory get `rng.at(i)`: `rng.at(0)` is common to all.
        """

    def between(self, a: Tensor, b: Tensor, share: Tensor) -> Tensor:  # optional
        """x_1 on the way from a to b, like a draw of the prior; (B, ...).

        `share`, (B,), goes from 0 to 1. `ConfigError` if nothing lies between.
        """
        raise ConfigError(f"interpolate: {self.apart}", "leave interpolate out")

    @abstractmethod
    def reverse(
        self, q: Posterior, x: Tensor, t: Tensor, s: Tensor, rng: Rng, **how: Any
    ) -> Tensor:
        """Draw x_s given x_t and a belief about x_0, s < t.

        Each process declares its own keywords `how` (`eta`, `kernel`, ...).
        """

    def check(self, **how: Any) -> None:  # optional
        """Refuse a keyword of `reverse` that is out of its range (`ValueError`)."""


class Chart(NamedTuple):
    """Coordinates in which an ODE is integrated: y = x / scale over clock."""

    scale: Tensor
    clock: Tensor


class Flow(Process):
    """A process whose marginals are also carried by an ODE."""

    @abstractmethod
    def velocity(self, q: Posterior, x: Tensor, t: Tensor) -> Tensor:
        """dx/dt of the probability-flow ODE, the shape of `x`."""

    @abstractmethod
    def log_prior(self, x: Tensor) -> Tensor:
        """log p_1(x) in nats, (B,)."""

    @abstractmethod
    def chart(self, t: Tensor) -> Chart:
        """The coordinates in which this process is integrated best."""

    def place(self, t: Tensor) -> tuple[float, float]:
        """Scale and clock of `chart` at one time, (), on the CPU."""
        scale, clock = self.chart(t)
        return scale.item(), clock.item()

    @abstractmethod
    def instant(self, clock: Tensor) -> Tensor:
        """The time at which the clock of `chart` shows this, within the span."""

    @abstractmethod
    def slope(self, q: Posterior, x: Tensor, t: Tensor) -> Tensor:
        """d(x / scale) / d clock in the coordinates of `chart`, the shape of `x`."""


processes: Registry[Process] = Registry("process", Process, __name__, given=("data",))
