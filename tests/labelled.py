"""A mixture whose components are its labels, and its exact classifier: FIX-M, T6.1."""

from __future__ import annotations

import torch
from oracles import NormalData, scales
from torch import Tensor

from diffusion_cli.core import Categorical, Point, Posterior, Spec
from diffusion_cli.denoiser import Denoiser
from diffusion_cli.parametrisations import parametrisations
from diffusion_cli.processes.affine import Affine


class Labelled(Denoiser):
    """Labelled normals N(mu_k, s2 I) of weights w_k: FIX-M with its labels.

    Without a label, or with -1, the belief is about the whole mixture.
    """

    def __init__(
        self, process: Affine, means: Tensor, weights: Tensor, s2: float = 0.25
    ) -> None:
        super().__init__()
        self.process: Affine = process
        self.means, self.weights, self.s2 = means, weights, s2
        self.spec = Spec((means.shape[1],), classes=len(means))

    def logits(self, x: Tensor, t: Tensor) -> Tensor:
        """log w_k p_t(x | k) up to a constant, (B, K): the exact classifier's."""
        k = scales(self.process, t, x)
        gaps = x[:, None] - (
            k.alpha * self.means if t.ndim == 0 else k.alpha[:, None] * self.means
        )
        v = (k.alpha**2 * self.s2 + k.sigma**2).expand(len(x), 1)
        return self.weights.log() - gaps.square().sum(-1) / (2 * v)

    def forward(
        self, x: Tensor, t: Tensor, label: Tensor | None = None, **cond: Tensor
    ) -> Posterior:
        each = torch.stack(
            [NormalData(self.process, self.s2, m)(x, t).mean for m in self.means], 1
        )
        shares = self.logits(x, t).softmax(1)
        if label is not None:
            known = torch.nn.functional.one_hot(label.clamp(min=0), len(self.means))
            shares = torch.where(label[:, None] < 0, shares, known.to(shares))
        return Point((shares[..., None] * each).sum(1))


class Judge(Denoiser):
    """The exact classifier of a mixture: what a trained run would be."""

    def __init__(self, mixture: Labelled) -> None:
        super().__init__()
        self.mixture, self.process, self.spec = mixture, mixture.process, mixture.spec
        self.parametrisation = parametrisations.build({"name": "classes"})

    def forward(self, x: Tensor, t: Tensor, **cond: Tensor) -> Posterior:
        return Categorical(self.mixture.logits(x, t)[:, None])
