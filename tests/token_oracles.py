"""Tokens whose law is a table (FIX-C): all posteriors by enumeration."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from diffusion_cli.core import Categorical, Posterior, Spec
from diffusion_cli.denoiser import Denoiser
from diffusion_cli.processes import processes
from diffusion_cli.processes.tokens import Tokens
from diffusion_cli.rng import Rng

Likelihood = Callable[[Tensor, Tensor, float], Tensor]
PROCESSES = {
    "mask": {"schedule": {"name": "linear"}, "floor": 1e-3},
    "mask_count": {},
    "uniform": {"schedule": {"name": "squared_cosine"}, "floor": 1e-3},
    "d3pm": {"levels": 20, "beta_max": 4.0},
    "edit": {},
}


def build(name: str, vocab: int = 3, length: int = 3, **own: object) -> Tokens:
    node = {"name": name, **PROCESSES[name], **own}
    process = processes.build(node, data=Spec((length,), "tokens", vocab=vocab))
    assert isinstance(process, Tokens)
    return process


def everything(vocab: int, length: int) -> Tensor:
    """All sequences, (vocab^length, length)."""
    return torch.tensor(list(itertools.product(range(vocab), repeat=length)))


def symbols(process: Tokens) -> int:
    """How many symbols a state has."""
    data = Spec((process.length,), "tokens", vocab=process.vocab)
    return process.state(data).vocab


def likelihood(name: str, process: Tokens) -> Likelihood:
    """q(x_t | x_0), (N, M), of states (N, L) and data (M, L): the theory's formulas."""
    size, length = process.vocab, process.length

    def per_token(matrix: Tensor, x: Tensor, x0: Tensor) -> Tensor:
        return matrix[x0[None], x[:, None]].prod(-1)

    def mask(x: Tensor, x0: Tensor, t: float) -> Tensor:
        alpha = {"linear": 1 - t, "cosine": 1 - math.sin(math.pi * t / 2)}[
            type(process.schedule).__name__.lower()  # type: ignore[attr-defined]
        ]
        one = alpha * torch.eye(size).double()
        hidden = torch.full((size, 1), 1 - alpha, dtype=torch.float64)
        return per_token(torch.cat((one, hidden), 1), x, x0)

    def uniform(x: Tensor, x0: Tensor, t: float) -> Tensor:
        alpha = math.cos(math.pi * t / 2) ** 2
        return per_token(alpha * torch.eye(size).double() + (1 - alpha) / size, x, x0)

    def d3pm(x: Tensor, x0: Tensor, t: float) -> Tensor:
        product, levels = torch.eye(size).double(), 20
        for k in range(round(t * levels)):
            beta = 1e-4 + (4.0 - 1e-4) * k / (levels - 1)
            product = product @ stepping(size, beta)
        return per_token(product, x, x0)

    def mask_count(x: Tensor, x0: Tensor, t: float) -> Tensor:
        n, hidden = round(t * length), x[:, None] == size
        fits = (hidden | (x[:, None] == x0)).all(-1) & (hidden.sum(-1) == n)
        return fits.double() / math.comb(length, n)

    def edit(x: Tensor, x0: Tensor, t: float) -> Tensor:
        n = round(t * length)
        apart = (x[:, None] != x0).sum(-1) == n
        return apart.double() / (math.comb(length, n) * (size - 1) ** n)

    known = {"mask": mask, "mask_count": mask_count, "uniform": uniform}
    return (known | {"d3pm": d3pm, "edit": edit})[name]


@cache
def stepping(size: int, beta: float) -> Tensor:
    """One discretised Gaussian step, entry by entry (Austin et al. 2021, eq. 8)."""

    def power(n: int) -> float:
        return math.exp(-4 * n**2 / ((size - 1) ** 2 * beta))

    total = sum(power(n) for n in range(-(size - 1), size))
    matrix = torch.zeros(size, size, dtype=torch.float64)
    for i, j in itertools.product(range(size), repeat=2):
        matrix[i, j] = power(i - j) / total if i != j else 0
    return matrix + torch.diag(1 - matrix.sum(1))


class Table(Denoiser):
    """Data with a probability for every sequence; exact marginals of p(x_0 | x_t)."""

    def __init__(self, name: str, process: Tokens, p: Tensor) -> None:
        super().__init__()
        self.process: Tokens = process
        self.name, self.p = name, p
        self.data = everything(process.vocab, process.length)
        self.law = likelihood(name, process)
        self.timeless = name == "mask"
        self.calls = 0

    def joint(self, x: Tensor, t: float) -> Tensor:
        """p(x_0 | x_t) of whole sequences, (N, M)."""
        weights = self.law(x, self.data, t) * self.p
        return weights / weights.sum(1, keepdim=True).clamp(min=1e-300)

    def forward(self, x: Tensor, t: Tensor, **cond: Tensor) -> Posterior:
        self.calls += 1
        if self.name == "mask":  # the same at all times, and known at t = 1 too
            joint = self.joint(x, 0.5)
        elif self.name == "mask_count":  # the number hidden is the time
            shares = (x == self.process.vocab).sum(1) / x.shape[1]
            joint = torch.cat(
                [
                    self.joint(row[None], float(share))
                    for row, share in zip(x, shares, strict=True)
                ]
            )
        elif t.ndim == 0:
            joint = self.joint(x, float(t))
        else:
            joint = torch.cat(
                [self.joint(row[None], float(at)) for row, at in zip(x, t, strict=True)]
            )
        shape = (len(x), *x.shape[1:], self.process.vocab)
        marginal = torch.zeros(shape, dtype=torch.float64)
        for i in range(x.shape[1]):
            for v in range(self.process.vocab):
                marginal[:, i, v] = joint[:, self.data[:, i] == v].sum(1)
        return Categorical(marginal.clamp(min=1e-300).log())


def table(vocab: int = 3, length: int = 3, seed: int = 0) -> Tensor:
    """A random joint law of all sequences."""
    u = Rng(seed, torch.arange(vocab**length)).child("table").uniform((-1, 1))
    p = -u[:, 0].log()
    return p / p.sum()


def certain(x0: Tensor, vocab: int) -> Categorical:
    """The belief that knows x_0."""
    return Categorical(torch.nn.functional.one_hot(x0, vocab).double() * 1e4)


def entropy(p: Tensor) -> float:
    return float(-(p * p.log()).sum())
