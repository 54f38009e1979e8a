"""A subject for metrics: known beliefs, data and samples."""

from __future__ import annotations

import torch

from diffusion_cli.core import Spec
from diffusion_cli.metrics import Batch, Subject
from diffusion_cli.rng import Rng


class Stub(Subject):
    """Data and samples as they stand; `denoiser` plays the trained model."""

    def __init__(self, denoiser=None, x0=None, drawn=None, spec=None, batch=64):
        self.model = self.denoiser = denoiser
        self.device, self.batch = torch.device("cpu"), batch
        self.x0, self.drawn = x0, drawn
        self.model.spec = spec or Spec(tuple(x0.shape[1:]))

    def data(self, n, first=0):
        end = min(first + n, len(self.x0))
        for begin in range(first, end, self.batch):
            index = torch.arange(begin, min(begin + self.batch, end))
            yield Batch(self.x0[index], {}, Rng(0, index))

    def samples(self, n):
        return self.drawn[:n]
