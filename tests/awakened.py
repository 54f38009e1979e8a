"""Small networks of every kind, no longer at zero."""

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffusion_cli.core import Spec
from diffusion_cli.networks import Network, networks

IMAGE = Spec((3, 8, 8), classes=5, extra=2)
TOKENS = Spec((8,), "tokens", classes=5, vocab=7, extra=2)
SMALL: dict[str, dict[str, Any]] = {
    "dit": {"name": "dit", "patch": 4, "depth": 2, "width": 16, "heads": 2},
    "encoder": {
        "name": "encoder",
        "channels": 8,
        "multipliers": (1, 2),
        "dropout": 0.0,
    },
    "mlp": {"name": "mlp", "width": 16, "depth": 2},
    "token_transformer": {
        "name": "token_transformer",
        "depth": 2,
        "width": 16,
        "heads": 2,
    },
    "unet": {
        "name": "unet",
        "channels": 8,
        "multipliers": (1, 2),
        "blocks": 1,
        "attention": (4,),
        "dropout": 0.0,
    },
}


def node(name: str) -> dict[str, Any]:
    """A small config; a network without one is tested as its defaults have it."""
    return SMALL.get(name, {"name": name})


def reads(name: str) -> Spec:
    """What a network takes."""
    return TOKENS if name == "token_transformer" else IMAGE


def outs(name: str) -> list[tuple[int, ...]]:
    """Shapes that a network can give."""
    if reads(name) is TOKENS:
        return [(8, 7), (8, 9), (7,)]
    if name == "encoder":
        return [(7,)]
    return [(3, 8, 8), (6, 8, 8), (4, 8, 8), (7,)]


def build(name: str, out: tuple[int, ...] | None = None, **own: Any) -> Network:
    torch.manual_seed(0)
    out = out or outs(name)[0]
    return networks.build(node(name) | own, state=reads(name), out=out)


def awake(name: str, out: tuple[int, ...] | None = None, **own: Any) -> Network:
    """A float64 network none of whose branches is closed by a zero."""
    network = build(name, out, **own).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return network


def batch(
    name: str, rows: int = 4, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, ...]:
    generator, state = torch.Generator().manual_seed(1), reads(name)
    x = torch.randn(rows, *state.shape, generator=generator, dtype=dtype)
    if state is TOKENS:
        x = torch.randint(state.vocab, (rows, *state.shape), generator=generator)
    level = torch.rand(rows, generator=generator, dtype=dtype)
    label = torch.randint(state.classes, (rows,), generator=generator)
    extra = torch.randn(rows, state.extra, generator=generator, dtype=dtype)
    return x, level, label, extra


def gradients(network: nn.Module, inputs: Iterable[Tensor]) -> list[Tensor]:
    """The loss and the gradient of every parameter, at a fixed seed of dropout."""
    network.zero_grad()
    torch.manual_seed(7)
    loss = network(*inputs).square().mean()
    loss.backward()
    parameters = network.named_parameters()
    found = [loss.detach(), *(p.grad for _, p in parameters if p.grad is not None)]
    assert len(found) == 1 + len(list(network.parameters()))
    return [tensor.clone() for tensor in found]


every = pytest.mark.parametrize("name", networks.names())
