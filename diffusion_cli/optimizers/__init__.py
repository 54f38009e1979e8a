"""Optimisers: constructors of `torch.optim.Optimizer`, by name."""

from __future__ import annotations

from torch.optim import Optimizer

from diffusion_cli.registry import Registry

optimizers: Registry[Optimizer] = Registry(
    "optimizer", Optimizer, __name__, given=("params",)
)

# Their first use would import torch's compiler, which takes as long as torch itself,
# only to tell it to pass these by. `trainer.compile` compiles networks alone.
_used = (Optimizer.add_param_group, Optimizer.zero_grad)
for _method in (*_used, Optimizer.state_dict, Optimizer.load_state_dict):
    if _inner := getattr(_method, "__wrapped__", None):
        _inner.__dynamo_disable = _inner  # what that import would have put there
