"""Couplings: which noise goes with which datum."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from diffusion_cli.registry import Registry
from diffusion_cli.rng import Rng

Coupled = tuple[Tensor, Tensor, dict[str, Tensor]]


class Coupling(ABC):
    """Pairs clean samples with noise; both marginals stay as they are."""

    paired: bool = False  # whether it needs data that bring their own noise
    alike: bool = False  # whether it needs noise of the kind and shape of the data

    def check(self, micro_batch: int) -> None:  # noqa: B027  # most have nothing to say
        """Refuse a micro-batch, consecutive samples, that cannot be paired alone."""

    def stream(self, rng: Rng, **cond: Tensor) -> Rng:
        """Where the noise of these samples comes from; by default a stream of the step.

        Conditions that only the coupling reads are taken out by `__call__`.
        """
        return rng

    @abstractmethod
    def __call__(self, x0: Tensor, noise: Tensor, rng: Rng, **cond: Tensor) -> Coupled:
        """The paired (x_0, noise, conditions), each with one row per sample."""


couplings: Registry[Coupling] = Registry("coupling", Coupling, __name__)
