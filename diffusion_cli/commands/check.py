"""`dcli check`: all that is wrong with a training command, and what it would cost."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from diffusion_cli import assemble, identity
from diffusion_cli import config as configs
from diffusion_cli.core import Spec
from diffusion_cli.datasets import datasets
from diffusion_cli.denoiser import Model
from diffusion_cli.optimizers import optimizers
from diffusion_cli.place import Place

UNITS = {"T": 1e12, "G": 1e9, "M": 1e6, "k": 1e3}


def run(config: dict[str, Any], overrides: list[str]) -> None:
    """Assemble the run on the meta device and print what it is."""
    spec = assemble.spec_of(config)
    place = Place(datasets[config["dataset"]["name"]], spec, torch.device("cpu"))
    model = assemble.parts(config, spec, device="meta", context=place).model
    model.process.ready()
    rows = {
        "data": f"{config['dataset']['name']} {_shape(spec)}",
        **{role: _node(config[role]) for role in configs.COMPONENTS[1:]},
        "parameters": f"{parameters(model):,}",
        "FLOPs": f"{_short(flops(model))} per image, forward",
        "memory": f"{_short(memory(model, config))}B to train in float32, less in bf16 "
        "or fp16; estimated beside the program itself",
        "run folder": f"{identity.run_folder(config)}",
    }
    print("\n".join(f"{name:<16} {value}" for name, value in rows.items()))


def parameters(model: Model) -> int:
    """Number of parameters of the network."""
    return sum(weight.numel() for weight in model.network.parameters())


def flops(model: Model) -> int:
    """Floating-point operations of the network for one sample."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        _forward(model)
    total: int = counter.get_total_flops()
    return total


def memory(model: Model, config: dict[str, Any]) -> int:
    """Bytes of weights, gradients, averages, optimiser state and kept activations."""
    trainer = config["trainer"]
    weights = list(model.network.parameters())
    own = {weight.untyped_storage() for weight in weights}
    kept: dict[Any, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage not in own:
            kept[storage] = storage.nbytes()
        return tensor

    model.network.recompute = trainer["recompute"]
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        _forward(model)
    batch = trainer["micro_batch"] or trainer["batch"]
    optimizer = optimizers.build(config["optimizer"], params=weights)
    for weight in weights:
        weight.grad = torch.empty_like(weight)
    for group in optimizer.param_groups:
        group["fused"] = False  # fused kernels refuse the meta device
    optimizer.step()
    state = [value for each in optimizer.state.values() for value in each.values()]
    moments = sum(value.nbytes for value in state if isinstance(value, Tensor))
    copies = 2 + len(trainer["ema"])  # weights, gradients, averages
    fixed = copies * sum(weight.nbytes for weight in weights)
    total: int = fixed + moments + batch * sum(kept.values())
    return total


def _forward(model: Model) -> Tensor:
    """The network on one sample without content."""
    state = model.process.state(model.spec)
    with torch.device("meta"):
        tokens = state.kind == "tokens"
        x = torch.empty(1, *state.shape, dtype=torch.int64 if tokens else None)
        cond: dict[str, Tensor] = {}
        if state.classes:
            cond["label"] = torch.zeros(1, dtype=torch.int64)
        if state.extra:
            cond["extra"] = torch.empty(1, state.extra)
        out: Tensor = model.network(x, torch.empty(1), **cond)
    model.inspect(out, len(x))
    return out


def _shape(spec: Spec) -> str:
    size = "x".join(map(str, spec.shape))
    return f"{size}, {spec.classes} classes" if spec.classes else size


def _node(node: Any) -> str:
    """A component in one line: its name and its values."""
    if not isinstance(node, dict):
        return "none" if node is None else str(node)
    values = " ".join(
        f"{key}={_node(value)}" for key, value in node.items() if key != "name"
    )
    return f"{node['name']} ({values})" if values else str(node["name"])


def _short(number: float) -> str:
    """1234567 as `1.23 M`."""
    for unit, size in UNITS.items():
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.3g} "
