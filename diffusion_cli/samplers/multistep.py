"""Exponential multistep methods: the loop they share.

They integrate a polynomial through beliefs exactly, and differ in what it stands for,
the clean sample or the noise, in its variable, and in the noise that they add.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import islice, pairwise
from typing import NamedTuple, cast

import torch
from torch import Tensor

from diffusion_cli.denoiser import Denoiser
from diffusion_cli.processes import Process
from diffusion_cli.processes.affine import Affine, Numbers
from diffusion_cli.rng import Rng
from diffusion_cli.samplers import Grid, Sampler
from diffusion_cli.settings import require


@lru_cache(maxsize=4096)
def interpolation(nodes: tuple[float, ...], h: float) -> tuple[float, ...]:
    """Weights of a polynomial's values at `nodes` in its integral against exp(-v).

    w_j = integral over (0, h) of exp(-v) prod_{k != j} (v - n_k) / (n_j - n_k) dv

    A sampler repeats the same steps in every chunk.
    """
    return quadrature(nodes, 0.0, h, lambda v: math.exp(-v))


def quadrature(
    nodes: tuple[float, ...], low: float, high: float, density: Callable[[float], float]
) -> tuple[float, ...]:
    """The same against any smooth density over (low, high).

    Gauss-Legendre quadrature on panels of at most unit length.
    """
    panels = max(1, math.ceil(high - low))
    width = (high - low) / panels
    weights = [0.0] * len(nodes)
    for panel in range(panels):
        for point, mass in _legendre(12):
            v = low + (panel + point) * width
            share = width * mass * density(v)
            for j, node in enumerate(nodes):
                others = nodes[:j] + nodes[j + 1 :]
                basis = [(v - other) / (node - other) for other in others]
                weights[j] += share * math.prod(basis)
    return tuple(weights)


@lru_cache
def _legendre(count: int) -> list[tuple[float, float]]:
    """Nodes and weights of Gauss-Legendre quadrature on (0, 1)."""
    i = torch.arange(1, count, dtype=torch.float64)
    off_diagonal = torch.diag(i / (4 * i**2 - 1).sqrt(), 1)
    nodes, vectors = torch.linalg.eigh(off_diagonal + off_diagonal.T)  # Golub-Welsch
    pairs = torch.stack(((nodes + 1) / 2, vectors[0] ** 2), 1)
    return [(point, mass) for point, mass in pairs.tolist()]


class Node(NamedTuple):
    """A value of the polynomial at a place of its variable."""

    at: float
    value: Tensor


class Multistep(Sampler):
    """Shared loop: remember the last beliefs, step with their weights.

    The first steps use what there is, and what a method knows of the past. A belief at
    infinite noise (alpha = 0) is no node of a polynomial. The last step, to t = 0,
    returns the belief unless a method knows better.

    A corrected method repeats its last step once the belief at the step's end is known,
    with a polynomial that runs through it too: one order more, no further call.
    """

    orders: tuple[int, ...] = (1, 2, 3)

    def __init__(
        self, grid: Grid, steps: int, order: int, correct: bool = False
    ) -> None:
        require(steps >= 1, "steps", steps, ">= 1")
        require(order in self.orders, "order", order, f"1 to {self.orders[-1]}")
        self.grid, self.steps, self.correct = grid, steps, correct
        self.values, self.order = order, order + correct

    @property
    def needs(self) -> type[Process]:
        return Affine

    @torch.no_grad()
    def trajectory(self, denoiser: Denoiser, x: Tensor, rng: Rng) -> Iterator[Tensor]:
        process = cast(Affine, denoiser.process)
        past: deque[Node] = deque(maxlen=self.values + self.correct)
        origin: tuple[Tensor, Numbers] | None = None  # of the step that led to x
        for i, (t, s) in enumerate(pairwise(self.grid(process, self.steps))):
            q = denoiser(x, t)
            a, b = process.numbers(t), process.numbers(s)
            if a.alpha > 0:
                node = Node(self.place(a), self.value(q.mean, x, a))
                past.appendleft(node)
                if len(past) == 1:
                    past.extend(self.before(node))
                if self.correct:
                    x = self.advance(*origin, a, past) if origin else x
                    origin = x, a
            nodes = list(islice(past, self.values))
            if s.item() == 0:
                x = self.finish(x, q.mean, a, nodes)
            else:
                far = a.alpha == 0
                x = self.begin(x, q.mean, a, b) if far else self.advance(x, a, b, nodes)
                x = self.disturb(x, a, b, rng.at(i))
            yield x

    def advance(
        self, x: Tensor, a: Numbers, b: Numbers, past: Sequence[Node]
    ) -> Tensor:
        """x_s from x_t and a polynomial through the nodes."""
        nodes = tuple(node.at for node in past)
        weights = self.weights(nodes, self.place(a), self.place(b))
        keep, gain = self.factors(a, b)
        x = keep * x
        for weight, node in zip(weights, past, strict=True):
            x = torch.add(x, node.value, alpha=gain * weight)
        return x

    def before(self, first: Node) -> Sequence[Node]:
        """What is known of the past of the first node, latest first: nothing."""
        return ()

    def begin(self, x: Tensor, mean: Tensor, a: Numbers, b: Numbers) -> Tensor:
        """x_s from x_t where alpha_t = 0: with one belief the step is DDIM's."""
        return (b.sigma / a.sigma) * x + b.alpha * mean

    def disturb(self, x: Tensor, a: Numbers, b: Numbers, rng: Rng) -> Tensor:
        """x_s with the noise that the step adds: none, for an ODE."""
        return x

    def finish(
        self, x: Tensor, mean: Tensor, a: Numbers, past: Sequence[Node]
    ) -> Tensor:
        """x_0 from x_t, the belief at t, and the nodes up to there."""
        return mean

    @abstractmethod
    def value(self, mean: Tensor, x: Tensor, a: Numbers) -> Tensor:
        """What the polynomial runs through: the clean sample or the noise."""

    @abstractmethod
    def place(self, k: Numbers) -> float:
        """The variable of the polynomial."""

    @abstractmethod
    def weights(
        self, nodes: tuple[float, ...], now: float, later: float
    ) -> tuple[float, ...]:
        """Of the values at `nodes` in the integral from one place to the other."""

    @abstractmethod
    def factors(self, a: Numbers, b: Numbers) -> tuple[float, float]:
        """x_s = factor x_t + factor times the integral of the polynomial."""


def log_snr(k: Numbers) -> float:
    """lambda = log(alpha / sigma)."""
    return math.log(k.alpha / k.sigma)
