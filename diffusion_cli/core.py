"""What all parts speak of: `Spec`, what a sample is; `Posterior`, a belief about it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from copy import copy
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from diffusion_cli.rng import Rng

Q = TypeVar("Q", bound="Posterior")


@dataclass(frozen=True)
class Spec:
    """What one sample looks like. Networks are built from it; checkpoints remember it.

    Args:
        shape: Shape of one sample: `(C, H, W)`, `(D,)`, or `(L,)` for tokens.
        kind: Real numbers, or tokens in `0 .. vocab - 1`.
        classes: Number of class labels; 0 means unconditional.
        vocab: Number of tokens; 0 for continuous data.
        extra: Length of a continuous condition.
        names: Names of the classes, in order.
        codec: Plain values that turn a sample back into a file.
    """

    shape: tuple[int, ...]
    kind: Literal["continuous", "tokens"] = "continuous"
    classes: int = 0
    vocab: int = 0
    extra: int = 0
    names: tuple[str, ...] = ()
    codec: Mapping[str, Any] = field(default_factory=dict)

    @property
    def numel(self) -> int:
        """Number of scalar coordinates of one sample."""
        return math.prod(self.shape)

    @property
    def points(self) -> bool:
        """Whether samples are points of a space, seen best all at once."""
        return len(self.shape) == 1 and self.kind == "continuous"

    def plain(self) -> dict[str, Any]:
        """A dictionary that JSON can hold; `Spec.parse` reads it back."""
        values = asdict(self)
        return values | {"shape": list(self.shape), "names": list(self.names)}

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Spec:
        """The `Spec` that `plain` wrote."""
        parsed = dict(values)
        parsed["shape"] = tuple(int(size) for size in values["shape"])
        parsed["names"] = tuple(str(name) for name in values.get("names", ()))
        parsed["codec"] = dict(values.get("codec", {}))
        counts = {key: values.get(key, 0) for key in ("classes", "vocab", "extra")}
        for key, count in [*counts.items(), *enumerate(parsed["shape"])]:
            if type(count) is not int or count < 0:
                raise ValueError(f"a sound {key}: {count!r}")
        if not parsed["shape"] or parsed.get("kind") not in ("continuous", "tokens"):
            raise ValueError(f"a shape and a kind: {parsed['shape']}")
        return cls(**parsed)


class Posterior(ABC):
    """A belief q(x_0 | x_t). Denoisers return it, objectives score it, samplers use it.

    `mean` is E[x_0 | x_t] in the shape of x_0 (tokens: the expected one-hot), `var` is
    Var[x_0 | x_t] per coordinate, 0 for a point. `tilt` is the gradient, in x_t, of a
    log-weight on the next state: a step of variance V adds V tilt to its mean.
    """

    mean: Tensor
    var: Tensor | float = 0.0
    tilt: Tensor | float = 0.0

    @abstractmethod
    def nll(self, x0: Tensor) -> Tensor:
        """Elementwise -log q(x_0 | x_t), up to a constant; the shape of `x0`."""

    @abstractmethod
    def draw(self, rng: Rng) -> Tensor:
        """One clean sample from the belief; the shape of x_0."""

    @abstractmethod
    def toward(self, other: Posterior, w: float | Tensor) -> Posterior:
        """Self moved by `w` toward `other`: q + w (other - q); `w > 1` extrapolates.

        All contrastive guidance is this one operation.
        """

    @abstractmethod
    def chunk(self, parts: int) -> tuple[Posterior, ...]:
        """Cut the batch into equal parts: the inverse of one batched evaluation."""

    def around(self, mean: Tensor) -> Posterior:
        """The same spread and tilt around another mean; tokens have no such thing."""
        moved = copy(self)
        moved.mean = mean
        return moved

    def tilted(self, gradient: Tensor | float) -> Posterior:
        """The same belief with `gradient` added to its tilt."""
        moved = copy(self)
        moved.tilt = self.tilt + gradient
        return moved

    def _tilted(self, parts: tuple[Q, ...]) -> tuple[Q, ...]:
        """The parts of this belief, each with its part of the tilt."""
        if isinstance(self.tilt, Tensor):
            for part, tilt in zip(parts, self.tilt.chunk(len(parts)), strict=True):
                part.tilt = tilt
        return parts


@dataclass
class Point(Posterior):
    """All belief on one point: the squared error.

    nll = (x_0 - mean)^2, a normal of variance 1/2; weights are stated on this error.
    """

    mean: Tensor

    def nll(self, x0: Tensor) -> Tensor:
        return (x0 - self.mean).square()

    def draw(self, rng: Rng) -> Tensor:
        return self.mean

    def toward(self, other: Posterior, w: float | Tensor) -> Posterior:
        moved = self.around(self.mean + w * (other.mean - self.mean))
        return moved.tilted(w * (other.tilt - self.tilt))

    def chunk(self, parts: int) -> tuple[Point, ...]:
        return self._tilted(tuple(map(Point, self.mean.chunk(parts))))


@dataclass
class Normal(Posterior):
    """Independent normals N(mean, var) per coordinate; `var` broadcasts over `mean`.

    nll = ((x_0 - mean)^2 / var + log var) / 2.
    """

    mean: Tensor
    var: Tensor

    def nll(self, x0: Tensor) -> Tensor:
        return ((x0 - self.mean).square() / self.var + self.var.log()) / 2

    def draw(self, rng: Rng) -> Tensor:
        normal = rng.child("belief").normal(self.mean.shape, self.mean.dtype)
        return self.mean + self.var.sqrt() * normal

    def toward(self, other: Posterior, w: float | Tensor) -> Posterior:
        moved = self.around(self.mean + w * (other.mean - self.mean))
        return moved.tilted(w * (other.tilt - self.tilt))

    def chunk(self, parts: int) -> tuple[Normal, ...]:
        var = self.var.expand_as(self.mean).chunk(parts)
        return self._tilted(tuple(map(Normal, self.mean.chunk(parts), var)))


@dataclass
class Categorical(Posterior):
    """A distribution over tokens per position, from logits of shape (B, L, V).

    nll = -log softmax(logits)[x_0], of shape (B, L). `given` are tokens that are known
    beforehand, as those of a prompt: (L,), -1 where there is none.
    """

    logits: Tensor
    given: Tensor | None = None

    @property
    def mean(self) -> Tensor:  # type: ignore[override]  # derived from the logits
        """The expected one-hot, (B, L, V)."""
        return self.logits.softmax(-1)

    def nll(self, x0: Tensor) -> Tensor:
        scores = self.logits.log_softmax(-1)
        return -scores.gather(-1, x0.unsqueeze(-1)).squeeze(-1)

    def draw(self, rng: Rng) -> Tensor:
        # Gumbel's trick in float64: float32 truncates the tail and cools the draw.
        uniform = rng.child("belief").uniform(self.logits.shape)
        gumbel = -torch.log(-torch.log(uniform))
        return (self.logits.double() + gumbel).argmax(-1)

    def toward(self, other: Posterior, w: float | Tensor) -> Categorical:
        assert isinstance(other, Categorical)
        own = self.logits.log_softmax(-1)
        moved = own + w * (other.logits.log_softmax(-1) - own)
        return Categorical(moved, self.given)

    def chunk(self, parts: int) -> tuple[Categorical, ...]:
        return tuple(Categorical(part, self.given) for part in self.logits.chunk(parts))
