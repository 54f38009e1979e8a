"""A subject for metrics: known beliefs, data and samples."""

from __future__ import annotations

import torch

from diffusion_cli.core import Spec
from diffusion_cli.datasets.digits import Digits
from diffusion_cli.metrics import Batch, Subject
from diffusion_cli.rng import Rng


class Nobody:
    """A trained model that nothing is asked of."""


class Stub(Subject):
    """Data and samples as they stand; `denoiser` plays the trained model.

    Draw k of the samples is the k-th of `draws`.
    """

    kind = Digits

    def __init__(
        self,
        denoiser=None,
        x0=None,
        drawn=None,
        spec=None,
        batch=64,
        other=None,
        draws=(),
        cache=None,
        judge=None,
    ):
        self.model = self.denoiser = denoiser or Nobody()
        self.device, self.batch = torch.device("cpu"), batch
        self.x0, self.draws, self.other = x0, [drawn, *draws], other
        self.model.spec = spec or Spec(tuple(x0.shape[1:]))
        self.cache, self.judge = cache, judge

    def data(self, n, first=0):
        end = len(self.x0) if n is None else min(first + n, len(self.x0))
        yield from self.batches(self.x0, first, end)

    def held_out(self, n):
        if self.other is None:
            return None
        return self.batches(self.other, 0, min(n, len(self.other)))

    def batches(self, x0, first, end):
        for begin in range(first, end, self.batch):
            index = torch.arange(begin, min(begin + self.batch, end))
            yield Batch(x0[index], {}, Rng(0, index))

    def samples(self, n, draw=0):
        return self.draws[draw][:n]

    def walked(self, walk):
        raise NotImplementedError

    def calls(self):
        return 1.0

    def classifier(self, run):
        return self.judge, "stub"
