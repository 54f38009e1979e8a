"""Readings with two outputs: a mean, read by any other reading, and its variance."""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple, cast

from torch import Tensor
from torch.nn import functional as F

from diffusion_cli.core import Normal, Spec
from diffusion_cli.parametrisations import Parametrisation, parametrisations
from diffusion_cli.processes import Process
from diffusion_cli.processes.affine import Diffusion, like
from diffusion_cli.settings import require

ONE = 0.5413248546129181  # softplus(ONE) = 1


def positive(h: Tensor) -> Tensor:
    """A positive number from any, 1 from 0: softplus(h + log(e - 1))."""
    return F.softplus(h + ONE)


class Limits(NamedTuple):
    """sigma^2 / (alpha^2 + sigma^2), and what a variance of x_0 is never above."""

    large: Tensor  # the variance of unit normal data: DDPM's large one
    most: Tensor  # (sigma / alpha)^2, or the bound of the data where that is less


class Second(Parametrisation):
    """A belief N(mean, C) per coordinate from two outputs; each reads C its own way.

    Args:
        mean: How the first output is read.
        bound: Largest variance, ((high - low) / 2)^2 for data in [low, high].
    """

    needs = Diffusion

    def __init__(self, mean: Parametrisation, bound: float | None = None) -> None:
        plain = (
            mean.about == "x0"
            and not mean.second
            and issubclass(self.needs, mean.needs)
        )
        name = parametrisations.name_of(mean)
        require(plain, "mean", name, "a reading of one output, such as {name: eps}")
        require(bound is None or bound > 0, "bound", bound, "> 0")
        self.mean, self.bound = mean, bound

    def fits(self, process: Process) -> str | None:
        return self.mean.fits(process)

    def out(self, state: Spec) -> tuple[int, ...]:
        return (2 * state.shape[0], *state.shape[1:])

    def inputs(self, x: Tensor, t: Tensor, process: Process) -> tuple[Tensor, Tensor]:
        return self.mean.inputs(x, t, process)

    def posterior(self, out: Tensor, x: Tensor, t: Tensor, process: Process) -> Normal:
        first, second = out.chunk(2, dim=1)
        mean = self.mean.posterior(first, x, t, process).mean
        return Normal(mean, self.variance(second, mean, x, t, cast(Diffusion, process)))

    @abstractmethod
    def variance(
        self, second: Tensor, mean: Tensor, x: Tensor, t: Tensor, process: Diffusion
    ) -> Tensor:
        """Var[x_0 | x_t] from the second output, the shape of `x`."""

    def limits(self, x: Tensor, t: Tensor, process: Diffusion) -> Limits:
        """The limits of a variance, shaped to multiply `x`."""
        k = process.scales(t)
        most = (k.sigma / k.alpha) ** 2
        if self.bound is not None:
            most = most.clamp(max=self.bound)
        large = k.sigma**2 / (k.alpha**2 + k.sigma**2)
        return Limits(like(large, x), like(most, x))


def noise_of(x: Tensor, mean: Tensor, t: Tensor, process: Diffusion) -> Tensor:
    """E[n | x_t] that belongs to a mean of x_0; no gradient flows through it."""
    k = process.at(t, x)
    return ((x - k.alpha * mean) / k.sigma).detach()
