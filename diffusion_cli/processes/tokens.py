"""What processes on tokens share: a vocabulary, float64 draws, a bound. Registers none.

`Factorised` spoils every position on its own; `Masking` hides tokens behind one more
symbol; how fast tokens are lost is a small role, `Survival`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor

from diffusion_cli.core import Categorical, Posterior, Spec
from diffusion_cli.processes import Process
from diffusion_cli.registry import Registry
from diffusion_cli.rng import Rng


class Kept(NamedTuple):
    """alpha(t), the probability that a token is still itself, and its derivative."""

    alpha: Tensor
    dalpha: Tensor


class Survival(ABC):
    """alpha(t) from exactly 1 at t = 0 to exactly 0 at t = 1; float64."""

    @abstractmethod
    def __call__(self, t: Tensor) -> Kept:
        """alpha and d alpha / dt at the times `t`."""

    @abstractmethod
    def time(self, alpha: Tensor) -> Tensor:
        """The time at which alpha(t) is this."""


survivals: Registry[Survival] = Registry(
    "survival", Survival, "diffusion_cli.processes"
)


def per_sample(value: Tensor, x: Tensor, more: int = 0) -> Tensor:
    """A value per sample, (B,), shaped to meet x with `more` axes behind its own.

    () stays (): such a time is on the CPU, and meets tensors of any device only so.
    """
    return value if value.ndim == 0 else value.reshape(-1, *[1] * (x.ndim - 1 + more))


def belief(q: Posterior) -> Tensor:
    """p(x_0 | x_t) of every position, (B, L, V) float64."""
    return cast(Categorical, q).logits.double().softmax(-1)


def log_belief(q: Posterior, tokens: Tensor) -> Tensor:
    """log p(x_0 = tokens | x_t), (B, L) float64."""
    scores = cast(Categorical, q).logits.double().log_softmax(-1)
    return scores.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def laid(q: Posterior, x: Tensor) -> Tensor:
    """x_t with the tokens that are known beforehand, which are never spoilt."""
    given = cast(Categorical, q).given
    return x if given is None else torch.where(given >= 0, given, x)


def choose(weights: Tensor, rng: Rng) -> Tensor:
    """A draw in proportion to weights (B, L, V), float64: (B, L) int64.

    By the distribution function: one uniform per position, and no small weight is lost
    to the rounding that Gumbel's trick suffers in low precision.
    """
    total = weights.cumsum(-1)
    mark = rng.uniform(weights.shape[:-1]) * total[..., -1]
    return (total <= mark[..., None]).sum(-1).clamp(max=weights.shape[-1] - 1)


class Tokens(Process):
    """A process on tokens 0 .. vocab - 1 of a sequence; beliefs are `Categorical`.

    The reverse step is the mixture of q(x_s | x_t, x_0) over the belief about x_0, or
    a restart: x_s spoilt anew from one clean draw, which is right for any process but
    forgets what x_t knew.
    """

    kind = "tokens"
    apart = "there is nothing between two tokens"

    def __init__(self, data: Spec) -> None:
        super().__init__()
        self.vocab, self.length = data.vocab, data.numel

    @abstractmethod
    def bridge(self, q: Posterior, x: Tensor, t: Tensor, s: Tensor, rng: Rng) -> Tensor:
        """Draw x_s from the mixture of q(x_s | x_t, x_0) over the belief."""

    @abstractmethod
    def bound(self, q: Posterior, x0: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The integrand of the bound on -log p(x_0) in nats, (B,).

        Its mean over uniform times of the process, with `decoder` and `leftover`, is
        the bound.
        """

    def decoder(self, q: Posterior, x0: Tensor, x: Tensor) -> Tensor:
        """-log p(x_0 | x) at the smallest time of a continuous process, (B,)."""
        return -log_belief(q, x0).sum(1)

    @abstractmethod
    def leftover(self, x0: Tensor) -> Tensor:
        """KL of q(x_1 | x_0) from the prior in nats, (B,)."""

    def reverse(  # type: ignore[override]  # keywords are checked by `assemble`
        self,
        q: Posterior,
        x: Tensor,
        t: Tensor,
        s: Tensor,
        rng: Rng,
        kernel: Literal["posterior", "restart"] = "posterior",
        final: Literal["draw", "mode"] = "draw",
    ) -> Tensor:
        """Draw x_s; `final` is how x_0 itself is taken from the belief."""
        rng, x = rng.child("reverse"), laid(q, x)
        if final == "mode" and bool((s == 0).all()):
            return self.settled(x, belief(q).argmax(-1))
        if kernel == "posterior":
            return self.bridge(q, x, t, s, rng)
        x0 = self.settled(x, choose(belief(q), rng.child("clean")))
        return self.corrupt(x0, s, self.noise(x0, rng.child("restart")))

    def settled(self, x: Tensor, x0: Tensor) -> Tensor:
        """A draw of x_0 without what x_t already tells; by default all of it."""
        return x0


class Factorised(Tokens):
    """Every position is spoilt on its own."""

    @abstractmethod
    def step(self, q: Posterior, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """p(x_s | x_t) of every position, float64: (B, L, symbols)."""

    def bridge(self, q: Posterior, x: Tensor, t: Tensor, s: Tensor, rng: Rng) -> Tensor:
        return choose(self.step(q, x, t, s), rng.child("token"))


class Masking(Tokens):
    """Tokens are hidden behind one more symbol, `vocab`; the others are left alone."""

    @property
    def mask(self) -> int:
        """The symbol that hides a token."""
        return self.vocab

    def state(self, data: Spec) -> Spec:
        return replace(data, vocab=data.vocab + 1)

    def prior(self, shape: Sequence[int], rng: Rng) -> Tensor:
        return torch.full(tuple(shape), self.mask, device=rng.device)

    @abstractmethod
    def instant(self, hidden: Tensor) -> Tensor:
        """The time at which this part of the tokens is hidden, inside the span."""

    def settled(self, x: Tensor, x0: Tensor) -> Tensor:
        return torch.where(x == self.mask, x0, x)

    def leftover(self, x0: Tensor) -> Tensor:
        return torch.zeros(len(x0), dtype=torch.float64, device=x0.device)


class Absorbing(Masking, Factorised):
    """Every token is hidden at a time of its own: P(still visible at t) = alpha(t)."""

    schedule: Survival
