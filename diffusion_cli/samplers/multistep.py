"""Exponential multistep methods in lambda = log(alpha / sigma): the loop they share.

They integrate a polynomial through beliefs against exp(-v) exactly, and differ in what
the polynomial stands for, the clean sample or the noise, and in the noise they add.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import islice, pairwise
from typing import NamedTuple, cast

import torch
from torch import Tensor

from diffusion_cli.denoiser import Denoiser
from diffusion_cli.processes import Process
from diffusion_cli.processes.affine import Affine, Scales
from diffusion_cli.rng import Rng
from diffusion_cli.samplers import Grid, Sampler
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


class Node(NamedTuple):
    """A value of the polynomial at lambda."""

    at: Tensor
    value: Tensor


class Multistep(Sampler):
    """Shared loop: remember the last beliefs, step with their weights.

    The first steps use what there is; the last one, to t = 0, is of order 1 and returns
    the belief. A belief at infinite noise (alpha = 0) is no node of a polynomial.

    A corrected method repeats its last step once the belief at the step's end is known,
    with a polynomial that runs through it too: one order more, no further call.
    """

    rate = 1.0  # the polynomial is integrated against exp(-rate v)

    def __init__(
        self, grid: Grid, steps: int, order: int, correct: bool = False
    ) -> None:
        require(steps >= 1, "steps", steps, ">= 1")
        require(order in (1, 2, 3), "order", order, "1, 2 or 3")
        self.grid, self.steps, self.correct = grid, steps, correct
        self.values, self.order = order, order + correct

    @property
    def needs(self) -> type[Process]:
        return Affine

    @torch.no_grad()
    def trajectory(self, denoiser: Denoiser, x: Tensor, rng: Rng) -> Iterator[Tensor]:
        process = cast(Affine, denoiser.process)
        past: deque[Node] = deque(maxlen=self.values + self.correct)
        origin: tuple[Tensor, Scales] | None = None  # of the step that led to x
        for i, (t, s) in enumerate(pairwise(self.grid(process, self.steps))):
            q = denoiser(x, t)
            a, b = process.schedule(t), process.schedule(s)
            if s == 0:
                x = q.mean
            elif a.alpha == 0:
                x = self.disturb(self.begin(x, q.mean, a, b), a, b, rng.at(i))
            else:
                past.appendleft(Node(log_snr(a), self.value(q.mean, x, a)))
                if self.correct:
                    x = self.advance(*origin, a, past) if origin else x
                    origin = x, a
                x = self.advance(x, a, b, list(islice(past, self.values)))
                x = self.disturb(x, a, b, rng.at(i))
            yield x

    def advance(self, x: Tensor, a: Scales, b: Scales, past: Sequence[Node]) -> Tensor:
        """x_s from x_t and a polynomial through the nodes."""
        now, later = log_snr(a), log_snr(b)
        nodes = self.nodes(torch.stack([node.at for node in past]), now, later)
        weights = interpolation(self.rate * nodes, self.rate * (later - now))
        parts = [w * node.value for w, node in zip(weights, past, strict=True)]
        return self.step(x, torch.stack(parts).sum(0), a, b)

    def begin(self, x: Tensor, mean: Tensor, a: Scales, b: Scales) -> Tensor:
        """x_s from x_t where alpha_t = 0: with one belief the step is DDIM's."""
        return (b.sigma / a.sigma) * x + b.alpha * mean

    def disturb(self, x: Tensor, a: Scales, b: Scales, rng: Rng) -> Tensor:
        """x_s with the noise that the step adds: none, for an ODE."""
        return x

    @abstractmethod
    def value(self, mean: Tensor, x: Tensor, a: Scales) -> Tensor:
        """What the polynomial runs through: the clean sample or the noise."""

    @abstractmethod
    def nodes(self, past: Tensor, now: Tensor, later: Tensor) -> Tensor:
        """The lambdas of the nodes in the variable v of the integral."""

    @abstractmethod
    def step(self, x: Tensor, total: Tensor, a: Scales, b: Scales) -> Tensor:
        """x_s from x_t and the integral of the polynomial against exp(-v)."""


def log_snr(k: Scales) -> Tensor:
    """lambda = log(alpha / sigma)."""
    return (k.alpha / k.sigma).log()
