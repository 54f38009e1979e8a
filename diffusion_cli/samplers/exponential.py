"""Exponential multistep methods in lambda = log(alpha / sigma).

Both integrate a polynomial through the last beliefs against exp(-v) exactly; they
differ in what the polynomial stands for, the clean sample or the noise.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor

from diffusion_cli.denoiser import Denoiser
from diffusion_cli.processes import Process
from diffusion_cli.processes.affine import Affine, Scales
from diffusion_cli.rng import Rng
from diffusion_cli.samplers import Grid, Sampler, samplers
from diffusion_cli.settings import require


def moments(h: Tensor, count: int) -> Tensor:
    """The integrals of v^i exp(-v) over (0, h) for i < count: (count,) float64.

    Gauss-Legendre nodes on unit panels; the recursion over i cancels for small h.
    """
    panels = max(1, int(h.ceil()))
    nodes, mass = _legendre(12)
    v = (torch.arange(panels)[:, None] + nodes) * (h / panels)
    powers = v[None] ** torch.arange(count)[:, None, None]
    return (powers * (-v).exp() * mass).sum((1, 2)) * (h / panels)


@lru_cache
def _legendre(count: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights of Gauss-Legendre quadrature on (0, 1), float64."""
    i = torch.arange(1, count, dtype=torch.float64)
    off_diagonal = torch.diag(i / (4 * i**2 - 1).sqrt(), 1)
    nodes, vectors = torch.linalg.eigh(off_diagonal + off_diagonal.T)  # Golub-Welsch
    return (nodes + 1) / 2, vectors[0] ** 2


def interpolation(nodes: Tensor, h: Tensor) -> list[float]:
    """Weights of a polynomial's values at `nodes` in its integral over exp(-v)."""
    powers = torch.arange(len(nodes), dtype=torch.float64)
    vandermonde = nodes[None] ** powers[:, None]
    return torch.linalg.solve(vandermonde, moments(h, len(nodes))).tolist()  # type: ignore[no-any-return]


class Exponential(Sampler):
    """Shared loop: remember the last `order` values, step with their weights.

    The first steps use what there is; the last one, to t = 0, is of order 1 and returns
    the belief. A belief at infinite noise (alpha = 0) is no node of a polynomial.
    """

    def __init__(self, grid: Grid, steps: int, order: int) -> None:
        require(steps >= 1, "steps", steps, ">= 1")
        require(order in (1, 2, 3), "order", order, "1, 2 or 3")
        self.grid, self.steps, self.order = grid, steps, order

    @property
    def needs(self) -> type[Process]:
        return Affine

    @torch.no_grad()
    def trajectory(self, denoiser: Denoiser, x: Tensor, rng: Rng) -> Iterator[Tensor]:
        process = cast(Affine, denoiser.process)
        past: deque[tuple[Tensor, Tensor]] = deque(maxlen=self.order)
        for t, s in pairwise(self.grid(process, self.steps)):
            q = denoiser(x, t)
            a, b = process.schedule(t), process.schedule(s)
            now, later = (a.alpha / a.sigma).log(), (b.alpha / b.sigma).log()
            if s == 0:
                x = q.mean
            elif now.isinf():
                x = (b.sigma / a.sigma) * x + b.alpha * q.mean
            else:
                past.appendleft((now, self.value(q.mean, x, a)))
                nodes = torch.stack([node for node, _ in past])
                weights = interpolation(self.nodes(nodes, now, later), later - now)
                pairs = zip(weights, past, strict=True)
                total = torch.stack([w * value for w, (_, value) in pairs]).sum(0)
                x = self.step(x, total, a, b)
            yield x

    @abstractmethod
    def value(self, mean: Tensor, x: Tensor, a: Scales) -> Tensor:
        """What the polynomial runs through: the clean sample or the noise."""

    @abstractmethod
    def nodes(self, past: Tensor, now: Tensor, later: Tensor) -> Tensor:
        """The past lambdas in the variable v of the integral."""

    @abstractmethod
    def step(self, x: Tensor, total: Tensor, a: Scales, b: Scales) -> Tensor:
        """x_s from x_t and the integral of the polynomial against exp(-v)."""


@samplers("dpmpp")
class DPMPP(Exponential):
    """DPM-Solver++ multistep: a polynomial through the beliefs about x_0.

    x_s = (sigma_s / sigma_t) x_t + alpha_s integral_0^h exp(-v) x_0(lambda_s - v) dv

    Reference: Lu et al. 2022, eq. 9, arXiv:2211.01095.

    Args:
        steps: Number of steps; one evaluation each.
        grid: Where the steps fall.
        order: Number of beliefs the polynomial runs through, 1 to 3; 1 is DDIM.
    """

    def __init__(self, grid: Grid, steps: int = 25, order: int = 2) -> None:
        super().__init__(grid, steps, order)

    def value(self, mean: Tensor, x: Tensor, a: Scales) -> Tensor:
        return mean

    def nodes(self, past: Tensor, now: Tensor, later: Tensor) -> Tensor:
        return later - past

    def step(self, x: Tensor, total: Tensor, a: Scales, b: Scales) -> Tensor:
        return (b.sigma / a.sigma) * x + b.alpha * total


@samplers("eab")
class EAB(Exponential):
    """Exponential Adams-Bashforth: a polynomial through the beliefs about the noise.

    x_s = (alpha_s / alpha_t) x_t
          - alpha_s (sigma_t / alpha_t) integral_0^h exp(-v) n(lambda_t + v) dv

    Reference: Zhang and Chen 2023, eq. 15, arXiv:2204.13902.

    Args:
        steps: Number of steps; one evaluation each.
        grid: Where the steps fall.
        order: Number of beliefs the polynomial runs through, 1 to 3; 1 is DDIM.
    """

    def __init__(self, grid: Grid, steps: int = 25, order: int = 3) -> None:
        super().__init__(grid, steps, order)

    def value(self, mean: Tensor, x: Tensor, a: Scales) -> Tensor:
        return (x - a.alpha * mean) / a.sigma

    def nodes(self, past: Tensor, now: Tensor, later: Tensor) -> Tensor:
        return past - now

    def step(self, x: Tensor, total: Tensor, a: Scales, b: Scales) -> Tensor:
        return (b.alpha / a.alpha) * x - (b.alpha * a.sigma / a.alpha) * total
