"""D3PM: T transition matrices, and their products."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from diffusion_cli.core import Posterior, Spec
from diffusion_cli.processes import processes
from diffusion_cli.processes.tokens import Factorised, belief, log_belief
from diffusion_cli.rng import Rng
from diffusion_cli.settings import require

LARGEST = 2**30  # bytes of all products
FAR = 0.05  # total variation between q(x_1 | x_0) and the prior that is let pass


def gaussian(beta: Tensor, size: int) -> Tensor:
    """Symmetric steps to near-by tokens, doubly stochastic: (T, V, V).

    Q_ij = exp(-4 (i - j)^2 / ((V - 1)^2 beta)) / Z off the diagonal, with Z summed over
    all differences; the diagonal is the rest.
    """
    gaps = torch.arange(-(size - 1), size, dtype=torch.float64)
    powers = -4 * gaps.square() / (max(size - 1, 1) ** 2 * beta[:, None])
    steps = powers.softmax(-1)  # by difference, (T, 2V - 1)
    i = torch.arange(size)
    matrix = steps[:, i[:, None] - i + size - 1]
    rest = 1 - matrix.sum(-1) + torch.diagonal(matrix, dim1=1, dim2=2)
    return matrix.diagonal_scatter(rest, dim1=1, dim2=2)


def uniform(beta: Tensor, size: int) -> Tensor:
    """Q = (1 - beta) I + beta / V: (T, V, V)."""
    one = torch.eye(size, dtype=torch.float64)
    return (1 - beta[:, None, None]) * one + beta[:, None, None] / size


@processes("d3pm")
class D3PM(Factorised):
    """Tokens move by T stochastic matrices, where they are ordered to near-by ones.

    q(x_t | x_0) = (Q_1 .. Q_t)[x_0, x_t]
    p(x_s | x_t) = sum over x_0 of q(x_s | x_t, x_0) p(x_0 | x_t)      (mixture)
                 ~ q(x_t | x_s) sum over x_0 of q(x_s | x_0) p(x_0)    (d3pm)

    The second is the paper's. It leaves out the division by q(x_t | x_0), so with the
    true p(x_0 | x_t) it is wrong (its best p is not that belief): only for networks
    trained by the bound with the same rule. The bound has T terms, the last of them
    -log p(x_0 | x_1/T).

    Reference: Austin et al. 2021, eq. 3, 4 and appendix A.2, arXiv:2107.03006.

    Args:
        matrix: A discretised Gaussian, for ordered tokens; or any token alike.
        levels: T.
        beta_min: beta of the first matrix.
        beta_max: beta of the last, linear in between.
        mixing: How a belief becomes a step.
    """

    def __init__(
        self,
        data: Spec,
        matrix: Literal["gaussian", "uniform"] = "gaussian",
        levels: int = 1000,
        beta_min: float = 1e-4,
        beta_max: float = 0.02,
        mixing: Literal["mixture", "d3pm"] = "mixture",
    ) -> None:
        super().__init__(data)
        require(levels >= 2, "levels", levels, ">= 2")
        require(0 < beta_min <= beta_max, "beta_min", beta_min, "in (0, beta_max]")
        sound = matrix == "gaussian" or beta_max <= 1
        require(sound, "beta_max", beta_max, "at most 1 with matrix=uniform")
        self.levels, self.span, self.mixing = levels, (1 / levels, 1.0), mixing
        bytes_ = levels * self.vocab**2 * 16
        most = LARGEST // 16 // max(1, self.vocab) ** 2
        allowed = f"at most {most} for this vocabulary"
        require(bytes_ <= LARGEST, "levels", levels, allowed)
        beta = torch.linspace(beta_min, beta_max, levels, dtype=torch.float64)
        size = max(1, self.vocab)
        steps = (gaussian if matrix == "gaussian" else uniform)(beta, size)
        products = [torch.eye(size, dtype=torch.float64)]
        for each in steps:
            products.append(products[-1] @ each)
        self._tables = {steps.device: (steps, torch.stack(products))}
        gap = float((products[-1] - 1 / size).abs().sum(-1).max()) / 2
        wanted = f"larger: tokens are still {gap:.2g} away from uniform at t = 1"
        require(gap <= FAR, "beta_max", beta_max, wanted)

    def noise(self, x0: Tensor, rng: Rng) -> Tensor:
        return rng.child("noise").uniform(x0.shape)

    def corrupt(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        rows = self._rows(self._products(x0)[self._level(t)], x0)
        below = (rows.cumsum(-1) <= noise[..., None]).sum(-1)
        return below.clamp(max=self.vocab - 1)

    def prior(self, shape: Sequence[int], rng: Rng) -> Tensor:
        return rng.child("prior").integers(self.vocab, shape)

    def step(self, q: Posterior, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        share = belief(q)
        products, i, j = self._products(x), self._level(t), self._level(s)
        if self.mixing == "mixture":
            reach = self._rows(
                products[i].transpose(-1, -2), x
            )  # q(x_t | x_0), (B, L, V)
            share = share / reach.clamp(min=1e-300)
        between = self._between(j, i, x)
        back = self._rows(between.transpose(-1, -2), x)  # q(x_t | x_s)
        weights: Tensor = back * (share @ products[j])
        total = weights.sum(-1, keepdim=True)
        # a token that this belief cannot lead to, as beside a prompt, tells nothing
        return torch.where(total > 0, weights / total, belief(q) @ products[j])

    def bound(self, q: Posterior, x0: Tensor, x: Tensor, t: Tensor) -> Tensor:
        products, i = self._products(x), self._level(t)
        j = i - 1
        back = self._rows(self._between(j, i, x).transpose(-1, -2), x)
        truth = back * self._rows(products[j], x0)  # q(x_s | x_t, x_0)
        truth = truth / truth.sum(-1, keepdim=True)
        step = self.step(q, x, t, j.double() / self._known())
        gap = truth.clamp(min=1e-300).log() - step.clamp(min=1e-300).log()
        nats = (truth * gap).sum(-1)
        return self._known() * torch.where(j > 0, nats.T, -log_belief(q, x0).T).sum(0)

    def leftover(self, x0: Tensor) -> Tensor:
        rows = self._rows(self._products(x0)[-1], x0)
        nats = (rows * (rows * self.vocab).clamp(min=1e-300).log()).sum(-1)
        return nats.sum(1)

    def _known(self) -> int:
        assert self.levels is not None
        return self.levels

    def _level(self, t: Tensor) -> Tensor:
        """The index of a time, 0 .. levels."""
        return (t.double() * self._known()).round().long()

    def _both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """All steps and all products, on the device of `x`."""
        if x.device not in self._tables:
            held = self._tables[torch.device("cpu")]
            self._tables[x.device] = (held[0].to(x.device), held[1].to(x.device))
        return self._tables[x.device]

    def _products(self, x: Tensor) -> Tensor:
        return self._both(x)[1]

    def _between(self, j: Tensor, i: Tensor, x: Tensor) -> Tensor:
        """Q_{j+1} .. Q_i: (V, V); or steps of one level, (B, V, V)."""
        steps = self._both(x)[0]
        between = steps[j]
        if i.ndim == 0:  # one time for the batch
            for each in steps[int(j) + 1 : int(i)]:
                between = between @ each
        return between

    @staticmethod
    def _rows(matrix: Tensor, x: Tensor) -> Tensor:
        """The row of every token: (B, L, V) of one matrix, or of one per sample."""
        if matrix.ndim == 2:
            return matrix[x]
        index = x[..., None].expand(*x.shape, matrix.shape[-1])
        return matrix.gather(1, index)
