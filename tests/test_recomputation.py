"""Recomputation and compilation leave the gradients."""

import copy
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from awakened import awake, batch, build, every, gradients
from torch import Tensor, nn

from diffusion_cli.networks import Network

MODES = ("none", "norms", "blocks", "attention")
DEEP: dict[str, dict[str, Any]] = {
    "dit": {"depth": 16},
    "encoder": {"blocks": 8},
    "mlp": {"depth": 16, "fourier": 0},
    "token_transformer": {"depth": 16},
    "unet": {"blocks": 8},
}
SHALLOW: dict[str, dict[str, Any]] = {
    "dit": {"depth": 1},
    "encoder": {"multipliers": (1,)},
    "mlp": {"depth": 1},
    "token_transformer": {"depth": 1},
    "unet": {"multipliers": (1,), "attention": ()},
}


@every
@pytest.mark.parametrize("mode", MODES[1:])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_recomputation_leaves_the_gradients(
    name: str, mode: str, dropout: float, dtype: torch.dtype
) -> None:
    network = awake(name, dropout=dropout).to(dtype)
    inputs = batch(name, dtype=dtype)
    kept = gradients(network, inputs)
    network.recompute = mode  # type: ignore[assignment]
    again = gradients(network, inputs)
    for one, two in zip(kept, again, strict=True):
        if dtype is torch.float64:
            assert torch.equal(one, two)
        else:
            torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-6)


def saved_bytes(network: nn.Module, inputs: Iterable[Tensor]) -> int:
    """Bytes kept for the backward pass, parameters left out."""
    own = {p.untyped_storage().data_ptr() for p in network.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = network(*inputs)
    assert output.requires_grad
    storages = [t.untyped_storage() for at, t in kept.items() if at not in own]
    return sum(storage.nbytes() for storage in storages)


@every
def test_recomputation_keeps_fewer_bytes(name: str) -> None:
    network, inputs = awake(name, **DEEP.get(name, {})), batch(name)
    bytes_ = {}
    for network.recompute in MODES:  # type: ignore[assignment]
        bytes_[network.recompute] = saved_bytes(network, inputs)
    assert bytes_["blocks"] < 0.5 * bytes_["none"]
    assert bytes_["norms"] < bytes_["none"] / 1.4
    attends = any(type(module).__name__ == "Attention" for module in network.modules())
    if attends:
        assert bytes_["blocks"] < bytes_["attention"] < bytes_["none"]
    else:
        assert bytes_["attention"] == bytes_["none"]


@every
def test_without_gradients_nothing_is_recomputed(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("recomputed without a backward pass")

    network, inputs = awake(name), batch(name)
    kept = network(*inputs)
    network.recompute = "blocks"
    monkeypatch.setattr("diffusion_cli.networks.blocks.checkpoint", refuse)
    with torch.no_grad():
        assert torch.equal(network(*inputs), kept)


@every
def test_no_dropout_is_no_module(name: str) -> None:
    kinds = [type(module) for module in build(name, dropout=0.0).modules()]
    assert nn.Dropout not in kinds
    assert nn.Dropout in [type(m) for m in build(name, dropout=0.1).modules()]


def compiled(network: Network, backend: str) -> Callable[..., Tensor]:
    torch.compiler.reset()
    network.compile(fullgraph=True, backend=backend, dynamic=False)
    return network


@every
@pytest.mark.parametrize("mode", MODES)
def test_compiled_in_one_graph_with_equal_gradients(name: str, mode: str) -> None:
    network, inputs = awake(name, **SHALLOW.get(name, {})), batch(name)
    twin = copy.deepcopy(network)
    twin.recompute = mode  # type: ignore[assignment]
    compiled(twin, "aot_eager")
    assert list(twin.state_dict()) == list(network.state_dict())
    for one, two in zip(
        gradients(network, inputs), gradients(twin, inputs), strict=True
    ):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
@every
def test_inductor_gives_equal_gradients(name: str) -> None:
    network = awake(name, **SHALLOW.get(name, {})).float()
    inputs = batch(name, dtype=torch.float32)
    twin = copy.deepcopy(network)
    twin.recompute = "blocks"
    compiled(twin, "inductor")
    for one, two in zip(
        gradients(network, inputs), gradients(twin, inputs), strict=True
    ):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)
