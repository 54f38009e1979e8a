"""Laws of the noise: isotropic ones by the quantile of their radius, and a box.

psi(r) is the probability of |n| < r; n has unit variance per coordinate, so a radius
grows like sqrt(d), as a normal one does. A density whose psi starts with a slope is
singular at 0 in d > 1: psi'(r) / (S r^(d - 1)), S the surface of the unit sphere.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from diffusion_cli.processes import student
from diffusion_cli.processes.rays import Law, laws
from diffusion_cli.rng import Rng
from diffusion_cli.settings import require


class Isotropic(Law):
    """A radius by its quantile, in a uniform direction."""

    isotropic = True

    def noise(self, shape: Sequence[int], rng: Rng, dtype: torch.dtype) -> Tensor:
        way = rng.child("direction").normal(shape, torch.float64).flatten(1)
        u = rng.child("radius").uniform((len(way), 1))
        radius = self.radius(u, way.shape[1])
        noise: Tensor = radius * way / way.norm(dim=1, keepdim=True)
        return noise.reshape(*shape).to(dtype)

    def log_density(self, n: Tensor, w: Tensor) -> Tensor:
        n = n.flatten(1)
        d, r = n.shape[1], n.norm(dim=1)
        sphere = math.log(2) + d / 2 * math.log(math.pi) - math.lgamma(d / 2)
        density: Tensor = self.log_slope(r, d, w) - (d - 1) * r.log() - sphere
        return density

    @abstractmethod
    def radius(self, u: Tensor, d: int) -> Tensor:
        """The r at which psi(r) = u, in d dimensions; float64."""

    @abstractmethod
    def log_slope(self, r: Tensor, d: int, w: Tensor) -> Tensor:
        """log psi'(r), (B,)."""


@laws("gaussian")
class Gaussian(Law):
    """n ~ N(0, I): the diffusion models, as one law among others.

    Reference: Karras et al. 2022, section 2, arXiv:2206.00364.
    """

    isotropic = True

    def noise(self, shape: Sequence[int], rng: Rng, dtype: torch.dtype) -> Tensor:
        return rng.child("noise").normal(shape, dtype)

    def log_density(self, n: Tensor, w: Tensor) -> Tensor:
        return -(n.square() + math.log(2 * math.pi)).flatten(1).sum(1) / 2


@laws("student")
class Student(Law):
    """Student-t noise of D degrees of freedom: p(n) ~ (|n|^2 + D)^(-(d + D) / 2).

    Its variance is D / (D - 2), or none at all for D <= 2.

    Reference: Xu et al. 2023, eq. 5, arXiv:2302.04265.

    Args:
        D: Degrees of freedom.
    """

    isotropic = True

    def __init__(self, D: float = 128.0) -> None:
        require(D >= student.LEAST, "D", D, f">= {student.LEAST}")
        self.D = D

    def noise(self, shape: Sequence[int], rng: Rng, dtype: torch.dtype) -> Tensor:
        return student.noise(shape, self.D, rng, dtype)

    def log_density(self, n: Tensor, w: Tensor) -> Tensor:
        n = n.flatten(1)
        return student.log_kernel(n.square().sum(1), n.shape[1], self.D)


@laws("ball")
class Ball(Isotropic):
    """Uniform in the ball of radius sqrt(d + 2): psi(r) = (r / sqrt(d + 2))^d.

    A state may lie outside of every ball, where no belief is defined: a grid that
    starts at the prior's end never asks there.

    Reference: Su 2022, "Talks on generative diffusion models" part 15,
        https://kexue.fm/archives/9379.
    """

    def radius(self, u: Tensor, d: int) -> Tensor:
        return math.sqrt(d + 2) * u ** (1 / d)

    def log_slope(self, r: Tensor, d: int, w: Tensor) -> Tensor:
        edge = math.sqrt(d + 2)
        inside = math.log(d / edge) + (d - 1) * (r / edge).log()
        return torch.where(r <= edge, inside, -math.inf)


@laws("tanh")
class Tanh(Isotropic):
    """psi(r) = tanh(r / s), s = sqrt(12 d) / pi.

    Reference: Su 2022, "Talks on generative diffusion models" part 15,
        https://kexue.fm/archives/9379.
    """

    def radius(self, u: Tensor, d: int) -> Tensor:
        return tanh_scale(d) * u.atanh()

    def log_slope(self, r: Tensor, d: int, w: Tensor) -> Tensor:
        z = r / tanh_scale(d)
        return log_sech2(z) - math.log(tanh_scale(d))


@laws("exponential")
class Exponential(Isotropic):
    """psi(r) = 1 - exp(-r / s), s = sqrt(d / 2).

    Reference: Su 2022, "Talks on generative diffusion models" part 15,
        https://kexue.fm/archives/9379.
    """

    def radius(self, u: Tensor, d: int) -> Tensor:
        return -math.sqrt(d / 2) * torch.log1p(-u)

    def log_slope(self, r: Tensor, d: int, w: Tensor) -> Tensor:
        scale = math.sqrt(d / 2)
        return -r / scale - math.log(scale)


@laws("steepening")
class Steepening(Isotropic):
    """psi_w(r) = tanh((r / s)^(1 + w)): a family that does not just change its scale.

    The quantile u of a radius is kept, r_w = s artanh(u)^(1 / (1 + w)), so the rays
    bend: with c = sigma / alpha, |x / alpha - x_0| = c r_w grows like c^k,

    (1 - k) c n = w^2 / (1 + w) ln(|n| / s) n,   s = sqrt(12 d) / pi

    Reference: Su 2022, "Talks on generative diffusion models" part 15,
        https://kexue.fm/archives/9379.
    """

    def radius(self, u: Tensor, d: int) -> Tensor:
        return tanh_scale(d) * u.atanh()  # at w = 0

    def at(self, n: Tensor, w: Tensor) -> Tensor:
        size = self._size(n)
        return n * (size ** (-w / (1 + w))).to(n.dtype)

    def bend(self, n: Tensor, w: Tensor) -> Tensor:
        return (w**2 / (1 + w) * self._size(n).log()).to(n.dtype) * n

    def log_slope(self, r: Tensor, d: int, w: Tensor) -> Tensor:
        power, size = 1 + w.reshape(-1), r / tanh_scale(d)
        slope = power.log() + (power - 1) * size.log() - math.log(tanh_scale(d))
        return log_sech2(size**power) + slope

    def _size(self, n: Tensor) -> Tensor:
        """|n| / s, shaped to multiply `n`; never 0."""
        flat = n.double().flatten(1)
        norm: Tensor = flat.norm(dim=1)
        size = (norm / tanh_scale(flat.shape[1])).clamp(min=1e-30)
        return size.reshape(-1, *[1] * (n.ndim - 1))


@laws("box")
class Box(Law):
    """Every coordinate uniform in [low, high].

    Reference: Su 2022, "Talks on generative diffusion models" part 15,
        https://kexue.fm/archives/9379.

    Args:
        low: Lower edge; -sqrt(3) .. sqrt(3) has unit variance.
        high: Upper edge.
    """

    def __init__(
        self, low: float = -1.7320508075688772, high: float = 1.7320508075688772
    ) -> None:
        require(low < high, "low", low, f"< high={high:g}")
        self.low, self.high = low, high

    def noise(self, shape: Sequence[int], rng: Rng, dtype: torch.dtype) -> Tensor:
        u = rng.child("noise").uniform(shape)
        return (self.low + (self.high - self.low) * u).to(dtype)

    def log_density(self, n: Tensor, w: Tensor) -> Tensor:
        n = n.flatten(1)
        inside = ((n >= self.low) & (n <= self.high)).all(1)
        volume = n.shape[1] * math.log(self.high - self.low)
        return torch.where(inside, -volume, -math.inf).double()


def tanh_scale(d: int) -> float:
    """The s for which a radius of psi = tanh(r / s) has E r^2 = d."""
    return math.sqrt(12 * d) / math.pi


def log_sech2(z: Tensor) -> Tensor:
    """log of 1 / cosh(z)^2 for z >= 0, which underflows by itself."""
    return 2 * (math.log(2) - z - F.softplus(-2 * z))
