"""Optimisers: constructors of `torch.optim.Optimizer`, by name."""

from __future__ import annotations

from torch.optim import Optimizer

from diffusion_cli.registry import Registry

optimizers: Registry[Optimizer] = Registry(
    "optimizer", Optimizer, __name__, given=("params",)
)
