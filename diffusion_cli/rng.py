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

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_log = logging.getLogger(__name__)
_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)  # golden ratio and sqrt(3) - 1, in 32 bits
_CASES = 2**12  # cases of a round, whose words are made for one position too
_AT_ONCE = 2**14  # counters, whose temporary numbers stay in the cache
_STREAMS = 16  # whose words are kept for the steps after


def philox(counter: Sequence[Tensor | int], seed: int, count: int = 4) -> Tensor:
    """The first of four 32-bit words for every 128-bit counter: int64 (..., count).

    int64 products wrap modulo 2^64, which leaves both halves of the unsigned product.
    On the CPU numpy computes the same integers, in half the time for few.
    """
    on_device = any(isinstance(word, Tensor) and not word.is_cpu for word in counter)
    return (_by_torch if on_device else _by_numpy)(counter, seed, count)


def _by_torch(counter: Sequence[Tensor | int], seed: int, count: int) -> Tensor:
    c0, c1, c2, c3 = (torch.as_tensor(word) & _MASK for word in counter)
    for k0, k1 in _keys(seed)[..., 0].tolist():
        low = c0 * _MULTIPLIERS[0]
        high = c2 * _MULTIPLIERS[1]
        c0 = ((high >> 32) & _MASK) ^ c1 ^ k0
        c2 = ((low >> 32) & _MASK) ^ c3 ^ k1
        c1, c3 = high & _MASK, low & _MASK
    words = torch.broadcast_tensors(c0, c1, c2, c3)  # type: ignore[no-untyped-call]
    return torch.stack(words[:count], -1)


def _by_numpy(counter: Sequence[Tensor | int], seed: int, count: int) -> Tensor:
    """Both halves of a product are read where it lies, at most `_AT_ONCE` at a time."""
    told = [w & _MASK if isinstance(w, int) else w.numpy() for w in counter]
    words = np.empty((4, *np.broadcast(*told).shape), np.uint32)
    for place, values in enumerate(told):
        words[place] = values  # the lowest 32 bits
    flat, factors = words.reshape(4, -1), np.array(_MULTIPLIERS, np.uint64)[:, None]
    room = np.empty((2, 2, min(flat.shape[1], _AT_ONCE)), "<u8")
    for start in range(0, flat.shape[1], _AT_ONCE):
        part = flat[:, start : start + _AT_ONCE]
        even, odd = part[::2], part[1::2]  # c0, c2 and c1, c3
        made = room[..., : part.shape[1]]
        halves = made.view("<u4").reshape(2, 2, -1, 2)[:, ::-1]  # the lanes cross
        low, high = halves[..., 0], halves[..., 1]
        for turn, key in enumerate(_keys(seed)):
            now = turn % 2  # the other product still holds `odd`
            np.multiply(even, factors, out=made[now], dtype=np.uint64)
            np.bitwise_xor(high[now], odd, out=even)
            np.bitwise_xor(even, key, out=even)
            odd = low[now]
        part[1::2] = odd
    chosen = np.moveaxis(words[:count], 0, -1)
    return torch.from_numpy(chosen.astype(np.int64, order="C"))


@lru_cache
def _keys(seed: int) -> NDArray[np.uint32]:
    """The keys of the ten rounds, (10, 2, 1)."""
    first = np.array([seed & _MASK, seed >> 32 & _MASK], np.uint64)
    turns = np.arange(10, dtype=np.uint64)[:, None]
    return (first + turns * np.array(_WEYL, np.uint64)).astype(np.uint32)[..., None]


def _words(rows: Tensor, blocks: int, step: int, stream: int, seed: int) -> Tensor:
    """The words of `rows` (B,): int64 (B, blocks, 4)."""
    element = torch.arange(blocks, device=rows.device)
    return philox((element, rows[:, None], step, stream), seed)


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
        return self.words(count).double().add_(0.5).mul_(2**-32).reshape(*shape)

    def normal(
        self, shape: Sequence[int], dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Standard normals by Box-Muller in float64, rounded to `dtype`; (B, ...)."""
        count = math.prod(shape[1:])
        pairs = self.uniform((len(self.rows), (count + 1) // 2, 2))
        even, odd = pairs.unbind(-1)
        radius, angle = even.log().mul_(-2).sqrt_(), odd * (2 * math.pi)
        torch.mul(radius, angle.cos(), out=even)
        torch.mul(radius, angle.sin_(), out=odd)
        return pairs.flatten(1)[:, :count].to(dtype).reshape(*shape)

    def integers(self, high: int, shape: Sequence[int]) -> Tensor:
        """Integers in `0 .. high - 1`, int64; `shape[0] = B`."""
        return (self.uniform(shape) * high).long().clamp_(max=high - 1)


class Ahead(Rng):
    """The same numbers, a step at a time, by fewer calls.

    On the CPU the words of one step take as long as those of a hundred: the first four
    of each row are made for the steps after it too, twice as many each time, and kept
    for `at`. A stream that is used once costs no more than one step.
    """

    def __init__(self, rng: Rng) -> None:
        super().__init__(rng.seed, rng.rows, rng.step, rng.stream)
        self._made: dict[tuple[int, int], tuple[int, Tensor]] = {}  # oldest use first

    def child(self, name: str) -> Rng:
        return self._beside(super().child(name))

    def at(self, step: int) -> Rng:
        return self._beside(super().at(step))

    def _beside(self, rng: Rng) -> Rng:
        other = Ahead(rng)
        other._made = self._made
        return other

    def words(self, count: int) -> Tensor:
        if count > 4 or not self.rows.is_cpu:
            return super().words(count)
        key = self.stream, count
        first, words = self._made.pop(key, (self.step, torch.empty(0)))
        place = self.step - first
        if not 0 <= place < len(words):
            many = 2 * len(words) + 1 if place == len(words) else 1
            many = min(many, max(1, _AT_ONCE // max(1, len(self))))
            steps = torch.arange(self.step, self.step + many)[:, None]
            words = philox((0, self.rows, steps, self.stream), self.seed, count)
            first, place = self.step, 0
        self._made[key] = first, words
        if len(self._made) > _STREAMS:
            del self._made[next(iter(self._made))]
        return words[place].clone()


def shuffled(index: Tensor, length: int, seed: int) -> Tensor:
    """Where a random permutation of `0 .. length - 1` sends each position, (B,) int64.

    Element `i` of epoch `i // length`: a four-round Feistel network on the smallest
    even number of bits, walked along its cycle until it lands inside; no list of the
    elements, so order and resume are arithmetic (Black and Rogaway 2002, "Ciphers with
    arbitrary finite domains"). A round sees half of the bits: if that leaves few cases,
    at most as many as positions, their words are made once and looked up.
    """
    epoch, position = index // length, index % length
    half = max(1, (max(length - 1, 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    outside = torch.arange(len(index), device=index.device)  # those that still walk
    begun, cases = _cases(epoch, half, seed, max(len(index), _CASES))
    era, walking = epoch, position
    while len(outside):
        left, right = walking >> half, walking & mask
        place = (era - begun) << half
        for turn in range(4):
            if cases is None:
                mixed = philox((right, turn, era & _MASK, era >> 32), seed, 1)[..., 0]
            else:
                mixed = cases[turn].index_select(0, place + right)
            left, right = right, mixed.bitwise_and_(mask).bitwise_xor_(left)
        walking = (left << half).bitwise_or_(right)
        position.index_copy_(0, outside, walking)
        still = (walking >= length).nonzero()[:, 0]
        outside, era, walking = (
            x.index_select(0, still) for x in (outside, era, walking)
        )
    return position


def _cases(epoch: Tensor, half: int, seed: int, most: int) -> tuple[int, Tensor | None]:
    """The first epoch, and the words of a Feistel network for what a round may see.

    int64 (4, epochs 2^half), None if these are more than `most` numbers a round.
    """
    if not len(epoch):
        return 0, None
    begun, end = torch.stack(epoch.aminmax()).tolist()
    total = (end - begun + 1) << half
    if total > most:
        return begun, None
    every = torch.arange(total, device=epoch.device)
    era, turns = begun + (every >> half), torch.arange(4, device=epoch.device)
    right = every & ((1 << half) - 1)
    counter = (right, turns[:, None], era & _MASK, era >> 32)
    return begun, philox(counter, seed, 1)[..., 0]
