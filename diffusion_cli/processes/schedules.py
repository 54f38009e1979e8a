"""Continuous schedules of affine paths; derivatives and inverses in closed form."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from diffusion_cli.processes.affine import Scales, Schedule, preserving, schedules
from diffusion_cli.settings import require


@schedules("exponential")
class Exponential(Schedule):
    """alpha = exp(-rate t^2): the continuous limit of prod sqrt(1 - 0.02 i / T).

    Reference: Su 2022, "Talks on generative diffusion models" part 1,
        https://kexue.fm/archives/9119.

    Args:
        rate: 5 is the limit of the product at T = 1000.
    """

    def __init__(self, rate: float = 5.0) -> None:
        require(rate > 0, "rate", rate, "> 0")
        self.rate = rate

    def __call__(self, t: Tensor) -> Scales:
        t = t.double()
        return preserving(-self.rate * t**2, -2 * self.rate * t)

    def time(self, ratio: Tensor) -> Tensor:
        return (torch.log1p(ratio.double() ** 2) / (2 * self.rate)).sqrt()


def integral(t: Tensor, beta_min: float, beta_max: float) -> tuple[Tensor, Tensor]:
    """B(t), the integral of a linear beta from 0 to t, and beta(t)."""
    t = t.double()
    rise = beta_max - beta_min
    return beta_min * t + rise * t**2 / 2, beta_min + rise * t


def inverse_integral(total: Tensor, beta_min: float, beta_max: float) -> Tensor:
    """The time at which B(t) = total, without cancellation near 0."""
    rise = beta_max - beta_min
    return 2 * total / (beta_min + (beta_min**2 + 2 * rise * total).sqrt())


@schedules("vp")
class VP(Schedule):
    """The variance-preserving SDE, alpha = exp(-B/2), sigma^2 = 1 - exp(-B).

    B(t) = beta_min t + (beta_max - beta_min) t^2 / 2.

    Reference: Song et al. 2021, eq. 11 and 33, arXiv:2011.13456.

    Args:
        beta_min: beta(0).
        beta_max: beta(1).
        floor: Smallest time that is trained and sampled.
    """

    def __init__(
        self, beta_min: float = 0.1, beta_max: float = 20.0, floor: float = 1e-3
    ) -> None:
        require(0 < beta_min <= beta_max, "beta_min", beta_min, "in (0, beta_max]")
        require(0 < floor < 1, "floor", floor, "in (0, 1)")
        self.betas, self.span = (beta_min, beta_max), (floor, 1.0)

    def __call__(self, t: Tensor) -> Scales:
        total, beta = integral(t, *self.betas)
        return preserving(-total / 2, -beta / 2)

    def time(self, ratio: Tensor) -> Tensor:
        return inverse_integral(torch.log1p(ratio.double() ** 2), *self.betas)


@schedules("subvp")
class SubVP(Schedule):
    """The sub-VP SDE, alpha = exp(-B/2), sigma = 1 - exp(-B).

    B(t) = beta_min t + (beta_max - beta_min) t^2 / 2.

    Reference: Song et al. 2021, appendix B, eq. 29, arXiv:2011.13456.

    Args:
        beta_min: beta(0).
        beta_max: beta(1).
        floor: Smallest time that is trained and sampled.
    """

    def __init__(
        self, beta_min: float = 0.1, beta_max: float = 20.0, floor: float = 1e-3
    ) -> None:
        require(0 < beta_min <= beta_max, "beta_min", beta_min, "in (0, beta_max]")
        require(0 < floor < 1, "floor", floor, "in (0, 1)")
        self.betas, self.span = (beta_min, beta_max), (floor, 1.0)

    def __call__(self, t: Tensor) -> Scales:
        total, beta = integral(t, *self.betas)
        alpha, sigma = (-total / 2).exp(), -torch.expm1(-total)
        return Scales(alpha, sigma, -beta / 2 * alpha, beta * (-total).exp())

    def time(self, ratio: Tensor) -> Tensor:
        # sigma / alpha = 2 sinh(B / 2)
        return inverse_integral(2 * torch.asinh(ratio.double() / 2), *self.betas)


@schedules("ve")
class VE(Schedule):
    """The variance-exploding SDE, alpha = 1, from exactly no noise at t = 0.

    sigma^2 = sigma_min^2 ((sigma_max / sigma_min)^(2t) - 1): the variance that the SDE
    adds. Song et al. leave out the -1, which is as if data carried noise sigma_min.

    Reference: Song et al. 2021, eq. 9 and 30, arXiv:2011.13456.

    Args:
        sigma_min: Scale at which the noise begins to grow geometrically.
        sigma_max: Noise at t = 1.
        floor: Smallest time that is trained and sampled.
    """

    def __init__(
        self, sigma_min: float = 0.01, sigma_max: float = 50.0, floor: float = 1e-3
    ) -> None:
        allowed = f"in (0, sigma_max={sigma_max:g})"
        require(0 < sigma_min < sigma_max, "sigma_min", sigma_min, allowed)
        require(0 < floor < 1, "floor", floor, "in (0, 1)")
        self.least, self.rate = sigma_min, math.log(sigma_max / sigma_min)
        self.span = (floor, 1.0)

    def __call__(self, t: Tensor) -> Scales:
        power = 2 * self.rate * t.double()
        sigma = self.least * torch.expm1(power).sqrt()
        slope = self.least**2 * self.rate * power.exp() / sigma
        return Scales(torch.ones_like(sigma), sigma, torch.zeros_like(sigma), slope)

    def time(self, ratio: Tensor) -> Tensor:
        return torch.log1p((ratio.double() / self.least) ** 2) / (2 * self.rate)


@schedules("karras")
class Karras(Schedule):
    """EDM's noise levels, alpha = 1, sigma = sigma_max t^rho; even t is its grid.

    Reference: Karras et al. 2022, eq. 5, arXiv:2206.00364.

    Args:
        sigma_min: Smallest noise that is trained and sampled.
        sigma_max: Noise at t = 1.
        rho: How much the levels crowd at small noise.
    """

    def __init__(
        self, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
    ) -> None:
        allowed = f"in (0, sigma_max={sigma_max:g})"
        require(0 < sigma_min < sigma_max, "sigma_min", sigma_min, allowed)
        require(rho > 0, "rho", rho, "> 0")
        self.most, self.rho = sigma_max, rho
        self.span = ((sigma_min / sigma_max) ** (1 / rho), 1.0)

    def __call__(self, t: Tensor) -> Scales:
        t = t.double()
        one, sigma = torch.ones_like(t), self.most * t**self.rho
        slope = self.most * self.rho * t ** (self.rho - 1)
        return Scales(one, sigma, torch.zeros_like(t), slope)

    def time(self, ratio: Tensor) -> Tensor:
        return (ratio.double() / self.most) ** (1 / self.rho)


@schedules("straight")
class Straight(Schedule):
    """Straight lines from data to noise, alpha = 1 - t, sigma = t: flow matching.

    With sigma_min, sigma = sigma_min + (1 - sigma_min) t: the lines begin at data with
    a little noise, which is what is then sampled. With shift k, t is replaced by
    k t / (1 + (k - 1) t), log k more in logit t: larger images need more noise to lose
    as much, k = sqrt(pixels / pixels before).

    Reference: Lipman et al. 2023, eq. 20-22, arXiv:2210.02747; Liu et al. 2023, eq. 1,
        arXiv:2209.03003; Esser et al. 2024, eq. 23, arXiv:2403.03206.

    Args:
        floor: Smallest time that is trained and sampled.
        sigma_min: Noise at t = 0; 0 is rectified flow.
        shift: k; 1 is none, 3 the paper's for 1024 x 1024.
    """

    def __init__(
        self, floor: float = 1e-3, sigma_min: float = 0.0, shift: float = 1.0
    ) -> None:
        require(0 < floor < 1, "floor", floor, "in (0, 1)")
        require(0 <= sigma_min < 1, "sigma_min", sigma_min, "in [0, 1)")
        require(shift > 0, "shift", shift, "> 0")
        self.span, self.least, self.shift = (floor, 1.0), sigma_min, shift

    def __call__(self, t: Tensor) -> Scales:
        k, rest = self.shift, 1 - self.least
        below = 1 + (k - 1) * t.double()
        t, speed = k * t.double() / below, k / below**2
        sigma = t if self.least == 0 else 1 - rest * (1 - t)  # exactly 1 at t = 1
        return Scales(1 - t, sigma, -speed, rest * speed)

    def time(self, ratio: Tensor) -> Tensor:
        ratio = ratio.double().clamp(max=1e300)  # infinite at t = 1
        t = ((ratio - self.least) / (ratio + 1 - self.least)).clamp(min=0)
        return t / (self.shift + (1 - self.shift) * t)


@schedules("trigonometric")
class Trigonometric(Schedule):
    """A quarter of a circle, alpha = cos(pi t / 2), sigma = sin(pi t / 2).

    Reference: Albergo et al. 2023, "Stochastic interpolants", arXiv:2303.08797.

    Args:
        floor: Smallest time that is trained and sampled.
    """

    def __init__(self, floor: float = 1e-3) -> None:
        require(0 < floor < 1, "floor", floor, "in (0, 1)")
        self.span = (floor, 1.0)

    def __call__(self, t: Tensor) -> Scales:
        # sin(pi (1 - t) / 2) is exactly 0 at t = 1, where cos(pi t / 2) is not
        angle, rest = t.double() * math.pi / 2, (1 - t.double()) * math.pi / 2
        alpha, sigma = rest.sin(), angle.sin()
        return Scales(alpha, sigma, -math.pi / 2 * sigma, math.pi / 2 * alpha)

    def time(self, ratio: Tensor) -> Tensor:
        return ratio.double().atan() * 2 / math.pi
