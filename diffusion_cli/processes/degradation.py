"""Degradations D(x_0, t): the contract, and the two ways to know where they end.

Registers nothing; `cold` is the process of any of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from diffusion_cli.core import Spec
from diffusion_cli.errors import ConfigError
from diffusion_cli.registry import Registry
from diffusion_cli.rng import Rng

Read = Callable[[str], Tensor]  # clean samples (N, ...) from a file or a folder


class Operator(nn.Module, ABC):
    """D(x_0, t; n) with D(x_0, 0) = x_0 and a severity that grows with t.

    A module: what `fit` learns about the end are buffers, and reach the checkpoint.
    Constructors may ask for `data`, the `Spec`, and `read`, which reads samples.
    """

    gaussian: bool = False  # `invert` solves for the noise, and that is normal
    told: bool = True  # x_t tells the noise by `invert`, or there is none

    def noise(self, x0: Tensor, rng: Rng) -> Tensor:
        """All randomness of one degradation, a row per sample; by default none."""
        return x0.new_zeros(len(x0), 0)

    @abstractmethod
    def forward(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """D(x_0, t; n), the shape and dtype of `x0`; `t` is () or (B,), float64."""

    def invert(self, x0: Tensor, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """The noise that leads from x_0 to x_t; the known one if x_t does not tell."""
        return noise

    def fit(self, batches: Iterable[Tensor]) -> None:  # optional
        """Learn the law of D(x_0, 1) from clean data."""

    def ready(self) -> None:  # optional
        """Look for the files that `fit` reads; a missing one is an error."""

    @abstractmethod
    def end(self, shape: Sequence[int], rng: Rng) -> Tensor:
        """Draw D(x_0, 1), of shape (B, ...)."""

    @property
    def around(self) -> Tensor | float | None:  # optional
        """The mean of D(x_0, 1) if its law is normal, broadcast to a sample."""
        return None


operators: Registry[Operator] = Registry(
    "operator", Operator, "diffusion_cli.processes", given=("data", "read")
)


def side(name: str, data: Spec) -> tuple[int, int, int]:
    """Channels, height and width of the images that `name` needs (`ConfigError`)."""
    if len(data.shape) != 3:
        shape = "x".join(map(str, data.shape))
        raise ConfigError(
            f"process.operator: `{name}` degrades images, the data is ({shape})",
            "a dataset of images, or process=cold_fade",
        )
    channels, height, width = data.shape
    return channels, height, width


class Averaging(Operator):
    """Degradations of images that end at the mean of each channel.

    The prior is a normal law of these means, with their covariance, fitted to the data.

    Args:
        name: Registered name, for messages.
        data: What is degraded.
    """

    mean: Tensor
    factor: Tensor

    def __init__(self, name: str, data: Spec) -> None:
        super().__init__()
        self.shape = channels, _, _ = side(name, data)
        self.register_buffer("mean", torch.zeros(channels, dtype=torch.float64))
        # covariance = factor factor^T
        factor = torch.zeros(channels, channels, dtype=torch.float64)
        self.register_buffer("factor", factor)

    @torch.no_grad()
    def fit(self, batches: Iterable[Tensor]) -> None:
        means = torch.cat([x0.double().mean((2, 3)) for x0 in batches])  # (N, C)
        rest = means - means.mean(0)
        covariance = rest.T @ rest / max(1, len(means) - 1)
        # the root of a matrix that may be singular: all images equally bright
        values, vectors = torch.linalg.eigh(covariance)
        self.mean.copy_(means.mean(0))
        self.factor.copy_(vectors * values.clamp(min=0).sqrt())

    @property
    def around(self) -> Tensor:
        return self.mean[:, None, None]

    def end(self, shape: Sequence[int], rng: Rng) -> Tensor:
        normal = rng.child("mean").normal((shape[0], len(self.mean)), torch.float64)
        means = self.mean + normal @ self.factor.T
        return means.float()[:, :, None, None].expand(tuple(shape)).clone()


class Examples(nn.Module):
    """A few samples that are kept, to be drawn from again.

    Args:
        count: How many.
        shape: Shape of one of them.
    """

    kept: Tensor

    def __init__(self, count: int, shape: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("kept", torch.zeros(count, *shape))

    def keep(self, samples: Iterable[Tensor]) -> None:
        """Keep the first of them; if there are fewer, some twice."""
        found: list[Tensor] = []
        for part in samples:
            found.append(part)
            if sum(map(len, found)) >= len(self.kept):
                break
        whole = torch.cat(found)
        place = torch.arange(len(self.kept), device=whole.device) % len(whole)
        self.kept.copy_(whole[place])

    def draw(self, rng: Rng) -> Tensor:
        """One of them for each row of `rng`."""
        which = rng.child("example").integers(len(self.kept), (len(rng),))
        return self.kept[which]
