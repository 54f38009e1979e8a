"""Another data set where noise would be."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from diffusion_cli.core import Spec
from diffusion_cli.datasets import Dataset
from diffusion_cli.errors import ConfigError
from diffusion_cli.processes.rays import Law, laws
from diffusion_cli.rng import Rng


@laws("data")
class Data(Law):
    """Samples of another data set: a path from data to data.

    Its samples are needed to draw as well as to train. It has no density, so there is
    no likelihood; a path to the prior that keeps some of x_0 (alpha > 0 at t = 1) is
    only nearly one from data to data: process.schedule.name=straight.

    Reference: Liu et al. 2023, section 2, arXiv:2209.03003; Albergo et al. 2023,
        arXiv:2303.08797.

    Args:
        dataset: The other data set.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset, self.ready = dataset, False

    def fits(self, data: Spec) -> str | None:
        spec = getattr(self.dataset, "spec", None)
        if spec is None or spec.shape == data.shape:
            return None
        return f"samples must have the shape {data.shape}, got {spec.shape}"

    def noise(self, shape: Sequence[int], rng: Rng, dtype: torch.dtype) -> Tensor:
        if not self.ready:
            self.dataset.prepare()
            spec = self.dataset.spec
            if spec.kind != "continuous" or spec.shape != tuple(shape[1:]):
                message = f"process.law.dataset: gives {spec.kind} {spec.shape}"
                wanted = f"continuous samples of shape {tuple(shape[1:])}"
                raise ConfigError(message, wanted)
            self.dataset.to(rng.device)
            self.ready = True
        index = rng.child("other").integers(len(self.dataset), (len(rng),))
        x1, _ = self.dataset.batch(index, rng.child("augment"))
        return x1.to(rng.device, dtype).reshape(*shape)

    def log_density(self, n: Tensor, w: Tensor) -> Tensor:
        raise ConfigError(
            "process.law: another data set has no density, so there is no likelihood",
            "a law with one: process.law.name=gaussian",
        )
