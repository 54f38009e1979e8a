"""Images, features and the library that rates them."""

from __future__ import annotations

import torch
from oracles import rows

from diffusion_cli.core import Spec
from diffusion_cli.metrics import Features, metrics
from diffusion_cli.metrics.seen import pixels

IMAGE = Spec((3, 4, 4), codec={"levels": 256})
MAP = rows(48, 9).normal((48, 6), torch.float64)  # pixels to features
CLASSES = rows(6, 8).normal((6, 4), torch.float64)  # features to logits


class Linear(Features):
    """Features that anyone can compute, and how often they were asked for."""

    name = "linear"

    def __init__(self, key="linear-1"):
        self.key, self.passes = key, []

    def load(self, subject):
        return self.key

    def __call__(self, x):
        self.passes.append(len(x))
        return pixels(x).double().flatten(1) @ MAP / 255

    def logits(self, features):
        return features @ CLASSES


def images(n, seed=0, spread=0.5):
    return (spread * rows(n, seed).normal((n, 3, 4, 4))).clamp(-1, 1)


def build(name, features=None, **own):
    node = {"name": name, "features": features or Linear(), "n": 300}
    return metrics.build(node | own)
