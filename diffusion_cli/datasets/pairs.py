"""Samples of another run as data, each with the number of its noise."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffusion_cli.core import Spec
from diffusion_cli.datasets import Batch, Dataset, datasets
from diffusion_cli.errors import DataError
from diffusion_cli.paths import typed
from diffusion_cli.rng import Rng


@datasets("pairs")
class Pairs(Dataset):
    """What `dcli sample format=npz` wrote: sample i, and i, which tells its noise.

    x_0i = ODE(n_i),   n_i a function of (seed, i)

    Goes with `coupling=pairs`. Draw with the averaged weights and a deterministic
    sampler, and many more samples than the new run has steps to overfit them.

    Reference: Liu et al. 2023, section 2.2, arXiv:2209.03003.

    Args:
        path: The folder of samples, with `samples.npz` and `about.json`.
    """

    def __init__(self, path: str) -> None:
        self.path = typed(path, "path")
        self._x0, self._label = torch.empty(0), torch.empty(0, dtype=torch.int64)
        self.seed = 0

    def prepare(self) -> None:
        if len(self._x0):
            return
        try:
            about = json.loads((self.path / "about.json").read_text())
            with np.load(self.path / "samples.npz", allow_pickle=False) as arrays:
                samples, labels = arrays["samples"], arrays.get("labels")
            self.spec = _spec(about)
            self.seed = int(about["seed"])
        except (OSError, KeyError, TypeError, ValueError) as error:
            message = f"dataset.path: {self.path} holds no pairs: {error}"
            hint = "dcli sample ckpt=... n=... format=npz out=<folder>"
            raise DataError(message, hint, "DATA-PATH") from error
        if start := about.get("encode") or about.get("restore"):
            message = f"dataset.path: {self.path} starts at {start}, not at noise"
            raise DataError(message, "draw samples of the prior", "DATA-PATH")
        self._x0 = torch.from_numpy(samples).float()
        if labels is not None:
            self._label = torch.from_numpy(labels).long()

    def __len__(self) -> int:
        return len(self._x0)

    def batch(self, indices: Tensor, rng: Rng) -> Batch:
        chosen = indices.to(self._x0.device)
        seed = torch.full_like(chosen, self.seed)
        cond = {"pair_row": chosen, "pair_seed": seed}
        if len(self._label):
            cond["label"] = self._label.index_select(0, chosen)
        return self._x0.index_select(0, chosen), cond

    def to(self, device: torch.device) -> bool:
        self._x0, self._label = self._x0.to(device), self._label.to(device)
        return True

    @classmethod
    def save(cls, x: Tensor, spec: Spec, folder: Path, first: int) -> None:
        _kind(spec).save(x, spec, folder, first)

    @classmethod
    def load(cls, path: Path, spec: Spec) -> Tensor:
        return _kind(spec).load(path, spec)

    @classmethod
    def picture(cls, x: Tensor, spec: Spec) -> Tensor:
        return _kind(spec).picture(x, spec)


def _kind(spec: Spec) -> type[Dataset]:
    """The data set whose samples were learnt first."""
    return datasets[str(spec.codec["kind"])]


def _spec(about: Mapping[str, Any]) -> Spec:
    """The spec of the samples, with what made them in its codec."""
    data = about["data"]
    codec = dict(data.get("codec", {}))
    law = {key: about["process"][key] for key in about["process"] if key != "schedule"}
    codec |= {"kind": codec.get("kind", about["dataset"]["name"]), "noise": law}
    return Spec.parse({**data, "codec": codec})
