"""A classifier of the data's own labels."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from diffusion_cli.metrics import Features, Subject, extractors
from diffusion_cli.metrics.seen import LastLinear
from diffusion_cli.processes.affine import Affine


@extractors("classifier")
class Classifier(Features):
    """What the last linear map of a classifier reads, at its least noise.

    Works offline for all labelled data. A small classifier of the run's training data
    is trained once for all runs on them and kept in the cache; its labels are those of
    the data. Numbers of other classifiers are not comparable.

    No reference: our own, as Heusel et al. 2017 use features of a classifier.

    Args:
        run: A run of `objective=classify` to take instead.
    """

    name = "classifier"

    def __init__(self, run: str | None = None) -> None:
        self.run = run

    def load(self, subject: Subject) -> str:
        self.model, weights = subject.classifier(self.run)
        process = cast(Affine, self.model.process)
        self.t = torch.tensor(process.span[0], dtype=torch.float64)
        self.alpha = process.schedule(self.t).alpha.item()
        self.last = LastLinear(self.model.network)
        self(torch.zeros(1, *subject.model.spec.shape, device=subject.device))
        return f"classifier-{weights}"

    def __call__(self, x: Tensor) -> Tensor:
        self.model.output(self.alpha * x, self.t)
        return self.last.read

    def logits(self, features: Tensor) -> Tensor:
        weight, bias = self.last.map.weight, self.last.map.bias
        return torch.nn.functional.linear(
            features, weight.to(features), bias.to(features)
        )
