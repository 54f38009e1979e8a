"""Guidance: denoisers around a denoiser. Each takes the inner one first.

Two small roles live beside it: energies, which say what is wanted, and operators, which
say what was measured.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from diffusion_cli.denoiser import Denoiser
from diffusion_cli.registry import Registry


class Energy(nn.Module, ABC):
    """A differentiable number for every clean sample, in nats; low is wanted."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """E(x), (B,), for samples (B, ...)."""


class Operator(ABC):
    """A linear map A of samples, whose rows are orthogonal: A A^T = gain I."""

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """A x for samples (B, ...)."""

    @abstractmethod
    def back(self, y: Tensor) -> Tensor:
        """The smallest x with A x = y: A^T y / gain."""

    def gain(self, y: Tensor) -> float:
        """The number in A A^T = gain I."""
        return 1.0


guidances: Registry[Denoiser] = Registry(
    "guidance", Denoiser, __name__, given=("denoiser", "context")
)
energies: Registry[Energy] = Registry("energy", Energy, __name__, given=("context",))
operators: Registry[Operator] = Registry("operator", Operator, __name__)
