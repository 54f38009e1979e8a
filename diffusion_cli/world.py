"""The processes of one command, as those see them who work in one of them.

Every rank holds the whole state and computes its rows of the global batch. Whatever
changes the state (gradients, losses, the wish to stop) is made common before it is
used, so the ranks stay equal bit for bit, and only the first one writes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from types import TracebackType
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class World(ABC):
    """The processes of a command; `rank` is this one's number among `size`."""

    rank: int = 0
    size: int = 1
    local: int = 0

    @abstractmethod
    def gather(self, x: Tensor) -> Tensor:
        """The equal shares of all ranks, in their order, along the first axis."""

    @abstractmethod
    def pool(self, parts: Sequence[Tensor], batch: int) -> Tensor:
        """All batches of all ranks, in the order in which `share` dealt them.

        Args:
            parts: What this rank found for its batches, (B, ...): k numbers a sample.
            batch: The largest B.

        Returns:
            (N, k), float64, on the CPU.
        """

    def share(self, whole: Iterable[T]) -> Iterator[T]:
        """Every `size`-th of some batches: this rank's."""
        return islice(whole, self.rank, None, self.size)

    @abstractmethod
    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Replace every tensor by its sum over the ranks."""

    @abstractmethod
    def copy(self, tensors: Sequence[Tensor]) -> None:
        """Replace every tensor by that of the first rank."""

    @abstractmethod
    def agree(self, wish: int) -> int:
        """The largest of all wishes; only hosts talk, no device waits."""

    @abstractmethod
    def meet(self) -> None:
        """Wait for the others, however long it takes."""

    @abstractmethod
    def once(self, work: Callable[[], object]) -> None:
        """Let the first rank do something, while the others wait."""

    @abstractmethod
    def led(self, work: Callable[[], T]) -> T:
        """Let every rank do something, the first one before the others."""

    @abstractmethod
    def same(self, tensors: Mapping[str, Tensor]) -> None:
        """Refuse tensors that differ between ranks (`WorkerError`)."""

    def __enter__(self) -> World:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.leave()

    @abstractmethod
    def leave(self) -> None:
        """Wait for the others, and part."""


class Alone(World):
    """One process: nobody to talk to."""

    def gather(self, x: Tensor) -> Tensor:
        return x

    def pool(self, parts: Sequence[Tensor], batch: int) -> Tensor:
        return torch.cat([p.reshape(len(p), -1).double().cpu() for p in parts])

    def sum(self, tensors: Sequence[Tensor]) -> None:
        pass

    def copy(self, tensors: Sequence[Tensor]) -> None:
        pass

    def agree(self, wish: int) -> int:
        return wish

    def meet(self) -> None:
        pass

    def once(self, work: Callable[[], object]) -> None:
        work()

    def led(self, work: Callable[[], T]) -> T:
        return work()

    def same(self, tensors: Mapping[str, Tensor]) -> None:
        pass

    def leave(self) -> None:
        pass
