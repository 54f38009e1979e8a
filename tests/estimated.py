"""Estimates of the reverse variance for tests."""

import torch
from oracles import (
    rows,
)

from diffusion_cli.variance import Fit, Moments


def left(process, s2, t):
    """Var[x_0 | x_t] for data N(m, s2)."""
    k = process.schedule(t)
    return s2 * k.sigma**2 / (k.alpha**2 * s2 + k.sigma**2)


def fit(denoiser, x0, times, batch=1000):
    moments = Moments()
    for part in x0.split(batch):
        moments.add(part)
    found = Fit(denoiser, times, moments)
    for i, part in enumerate(x0.split(batch)):
        own = torch.arange(i * batch, i * batch + len(part))
        assert list(found.add(part, rows(1).of(own))) == list(range(len(times)))
    return found.tensors()
