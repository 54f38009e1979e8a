"""Counter-based randomness: every number is a function of where it is used.

Philox-4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"),
key = seed, counter = (element / 4, sample, step, stream). No state is kept or saved.
"""

from __future__ import annotations

import logging
import math
import zlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

_log = logging.getLogger(__name__)
_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)  # golden ratio and sqrt(3) - 1, in 32 bits


def philox(counter: Sequence[Tensor | int], seed: int) -> list[Tensor]:
    """Four 32-bit words for every 128-bit counter, as int64 tensors; 32 bits of each.

    int64 products wrap modulo 2^64, which leaves both halves of the unsigned product.
    On the CPU numpy computes the same integers, in a quarter of the time for few.
    """
    words: list[Any] = [torch.as_tensor(word) for word in counter]
    if all(word.is_cpu for word in words):
        words = [word.numpy() for word in words]
    c0, c1, c2, c3 = (word & _MASK for word in words)
    k0, k1 = seed & _MASK, (seed >> 32) & _MASK
    with np.errstate(over="ignore"):
        for _ in range(10):
            low = c0 * _MULTIPLIERS[0]
            high = c2 * _MULTIPLIERS[1]
            c0 = ((high >> 32) & _MASK) ^ c1 ^ k0
            c2 = ((low >> 32) & _MASK) ^ c3 ^ k1
            c1, c3 = high & _MASK, low & _MASK
            k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    made = (torch.as_tensor(word) for word in (c0, c1, c2, c3))
    return list(torch.broadcast_tensors(*made))  # type: ignore[no-untyped-call]


def _words(rows: Tensor, blocks: int, step: int, stream: int, seed: int) -> Tensor:
    """The words of `rows` (B,): int64 (B, blocks, 4)."""
    element = torch.arange(blocks, device=rows.device)
    counter = (element, rows[:, None], step, stream)
    return torch.stack(philox(counter, seed), -1)


@lru_cache
def _kernel(device: torch.device) -> Callable[..., Tensor] | None:
    """The same by one kernel, if it can be built here and gives the same words."""
    probe = (torch.arange(5, device=device), 3, _MASK - 6, _MASK - 7, 2**62 + 8)
    try:
        from diffusion_cli.philox_kernel import words

        if torch.equal(words(*probe), _words(*probe)):
            return words
        reason = "other words"
    except torch.OutOfMemoryError:
        raise  # which says nothing about the kernel
    except Exception as error:  # no Triton, no compiler for it, a device it is not for
        reason = f"{type(error).__name__}: {error}"
    _log.warning("random numbers take a hundred kernels instead of one: %s", reason)
    return None


@lru_cache(maxsize=4096)
def _stream(parent: int, name: str) -> int:
    return zlib.crc32(f"{parent}/{name}".encode())


class Rng:
    """The random numbers of (seed, stream, step), one row per sample.

    A draw is pure: the same `Rng` gives the same numbers again. Two purposes therefore
    take two streams (`rng.child("time")`), two steps take two counters (`rng.at(i)`).

    Args:
        seed: Key of the generator, `0 <= seed < 2**63`.
        rows: Indices of the samples, (B,) int64; they also choose the device.
        step: Step counter.
        stream: Purpose, as 32 bits; made by `child`.
    """

    def __init__(self, seed: int, rows: Tensor, step: int = 0, stream: int = 0) -> None:
        self.seed, self.rows, self.step, self.stream = seed, rows, step, stream

    @property
    def device(self) -> torch.device:
        """Where the numbers are made."""
        return self.rows.device

    def __len__(self) -> int:
        return len(self.rows)

    def child(self, name: str) -> Rng:
        """The stream of another purpose."""
        return Rng(self.seed, self.rows, self.step, _stream(self.stream, name))

    def at(self, step: int) -> Rng:
        """The same stream at another step."""
        return Rng(self.seed, self.rows, step, self.stream)

    def of(self, rows: Tensor) -> Rng:
        """The same stream for other samples."""
        return Rng(self.seed, rows, self.step, self.stream)

    def shared(self) -> Rng:
        """One row that all samples of a step have in common, whatever the split."""
        return self.of(torch.zeros(1, dtype=torch.int64, device=self.device))

    def words(self, count: int) -> Tensor:
        """`count` 32-bit words per sample: (B, count) int64."""
        blocks = -(-count // 4)
        make = (self.rows.is_cuda and _kernel(self.device)) or _words
        words = make(self.rows, blocks, self.step & _MASK, self.stream, self.seed)
        return words.reshape(len(self.rows), blocks * 4)[:, :count]

    def uniform(self, shape: Sequence[int]) -> Tensor:
        """Uniforms in the open interval (0, 1), float64, 32 bits each; (B, ...)."""
        count = math.prod(shape[1:])
        return ((self.words(count).double() + 0.5) / 2**32).reshape(*shape)

    def normal(
        self, shape: Sequence[int], dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Standard normals by Box-Muller in float64, rounded to `dtype`; (B, ...)."""
        count = math.prod(shape[1:])
        pairs = self.uniform((len(self.rows), (count + 1) // 2, 2))
        radius = (-2 * pairs[..., 0].log()).sqrt()
        angle = 2 * math.pi * pairs[..., 1]
        normals = torch.stack((radius * angle.cos(), radius * angle.sin()), -1)
        return normals.flatten(1)[:, :count].to(dtype).reshape(*shape)

    def integers(self, high: int, shape: Sequence[int]) -> Tensor:
        """Integers in `0 .. high - 1`, int64; `shape[0] = B`."""
        return (self.uniform(shape) * high).long().clamp_(max=high - 1)


def shuffled(index: Tensor, length: int, seed: int) -> Tensor:
    """Where a random permutation of `0 .. length - 1` sends each position, (B,) int64.

    Element `i` of epoch `i // length`: a four-round Feistel network on the smallest
    even number of bits, walked along its cycle until it lands inside; O(1) memory, so
    order and resume are arithmetic (Black and Rogaway 2002, "Ciphers with arbitrary
    finite domains").
    """
    epoch, position = index // length, index % length
    half = max(1, (max(length - 1, 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    outside = torch.arange(len(index), device=index.device)  # those that still walk
    while len(outside):
        era, walking = epoch[outside], position[outside]
        left, right = walking >> half, walking & mask
        for turn in range(4):
            mixed = philox((right, turn, era & _MASK, era >> 32), seed)[0]
            left, right = right, left ^ (mixed & mask)
        walking = (left << half) | right
        position[outside] = walking
        outside = outside[walking >= length]
    return position
