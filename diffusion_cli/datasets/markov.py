"""A Markov chain over letters, whose entropy is known."""

from __future__ import annotations

import math
from string import ascii_lowercase
from typing import Literal

import torch
from torch import Tensor

from diffusion_cli.core import Spec
from diffusion_cli.datasets import Batch, datasets
from diffusion_cli.datasets.writing import Writing
from diffusion_cli.rng import Rng
from diffusion_cli.settings import require


@datasets("markov")
class Markov(Writing):
    """Stationary sequences of a random Markov chain.

    P(x_1) = pi, P(x_{i+1} | x_i) = A, rows of A in proportion to E^sharpness
    H / L = (H(pi) + (L - 1) h) / L,   h = sum_a pi_a H(A_a)   bits per token

    with E ~ Exp(1). Sample i is a function of (seed, i). H / L is in
    `spec.codec["bits_per_token"]`: no model can do better.

    Reference: Shannon 1948, section 7, "A mathematical theory of communication".

    Args:
        letters: Number of tokens.
        length: Tokens in a sequence.
        sharpness: 0 is no structure at all; large values tend to a fixed successor.
        size: Number of sequences.
        seed: Another chain; not the seed of the run.
        split: Sequences for training, or others of the same chain.
    """

    def __init__(
        self,
        letters: int = 8,
        length: int = 64,
        sharpness: float = 1.5,
        size: int = 100_000,
        seed: int = 0,
        split: Literal["train", "test"] = "train",
    ) -> None:
        require(2 <= letters <= 26, "letters", letters, "in 2 .. 26")
        require(length >= 1, "length", length, ">= 1")
        require(sharpness >= 0, "sharpness", sharpness, ">= 0")
        require(size >= 1, "size", size, ">= 1")
        require(0 <= seed < 2**63, "seed", seed, "in 0 .. 2^63 - 1")
        self.size, self.seed, self.split = size, seed, split
        rng = Rng(seed, torch.arange(letters)).child("markov")
        wild = (-rng.uniform((letters, letters)).log()) ** sharpness
        self.chain = wild / wild.sum(1, keepdim=True)  # A
        power = self.chain
        for _ in range(60):
            power = power @ power
            power = power / power.sum(1, keepdim=True)
        self.start = power[0]  # pi
        rate = float(self.start @ _entropy(self.chain))
        bits = (float(_entropy(self.start)) + (length - 1) * rate) / length
        codec = {"characters": ascii_lowercase[:letters], "bits_per_token": bits}
        self.spec = Spec((length,), "tokens", vocab=letters, codec=codec)
        self._tokens = torch.empty(0, length, dtype=torch.uint8)

    def prepare(self) -> None:
        if len(self._tokens):
            return
        rng = Rng(self.seed, torch.arange(self.size)).child(f"markov {self.split}")
        marks = rng.uniform((self.size, *self.spec.shape))
        start, chain = self.start.cumsum(0), self.chain.cumsum(1)
        most = self.spec.vocab - 1
        last = (start <= marks[:, :1]).sum(1).clamp(max=most)
        tokens = [last]
        for i in range(1, marks.shape[1]):
            last = (chain[last] <= marks[:, i : i + 1]).sum(1).clamp(max=most)
            tokens.append(last)
        self._tokens = torch.stack(tokens, 1).to(torch.uint8)

    def __len__(self) -> int:
        return self.size

    def batch(self, indices: Tensor, rng: Rng) -> Batch:
        return self._tokens[indices.to(self._tokens.device)].long(), {}

    def to(self, device: torch.device) -> bool:
        self._tokens = self._tokens.to(device)
        return True


def _entropy(p: Tensor) -> Tensor:
    """Bits of the last axis."""
    bits: Tensor = -torch.special.xlogy(p, p).sum(-1) / math.log(2)
    return bits
