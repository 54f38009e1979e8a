"""Every network in the registry keeps the contract."""

import copy
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffusion_cli.core import Spec
from diffusion_cli.networks import Network, networks
from diffusion_cli.networks.blocks import Embedding

IMAGE = Spec((3, 8, 8), classes=5, extra=2)
TOKENS = Spec((8,), "tokens", classes=5, vocab=7, extra=2)
MODES = ("none", "blocks", "attention")
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


def changed(x: Tensor) -> Tensor:
    """Another state."""
    return x + 0.1 if x.is_floating_point() else (x + 1) % TOKENS.vocab


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


@pytest.mark.parametrize(
    ("name", "out"), [(name, out) for name in networks.names() for out in outs(name)]
)
def test_output_has_the_shape_asked_for_and_starts_at_zero(
    name: str, out: tuple[int, ...]
) -> None:
    output = build(name, out)(*batch(name, dtype=torch.float32))
    assert output.shape == (4, *out)
    assert (output == 0).all()


@pytest.mark.parametrize("name", [n for n in networks.names() if (6, 8, 8) in outs(n)])
def test_a_second_read_out_is_a_head_beside_the_first(name: str) -> None:
    """The weights of a plain network fit by name, and give the same first output."""
    plain, twice = awake(name), awake(name, (6, 8, 8))
    mine, theirs = twice.state_dict(), plain.state_dict()
    fresh = mine.keys() - theirs.keys()
    assert not theirs.keys() - mine.keys()
    assert fresh and all(key.startswith("second.") for key in fresh)
    twice.load_state_dict(mine | theirs)
    first, second = twice(*batch(name)).chunk(2, dim=1)
    assert torch.equal(first, plain(*batch(name)))
    assert second.shape == first.shape and (second != first).all()
    for gradient in gradients(twice, batch(name)):
        assert gradient.abs().sum() > 0


@every
def test_no_label_is_the_label_minus_one(name: str) -> None:
    network, (x, level, label, extra) = awake(name), batch(name)
    none = network(x, level, None, extra)
    assert torch.equal(none, network(x, level, torch.full_like(label, -1), extra))
    assert not torch.allclose(none, network(x, level, label, extra))


@every
def test_no_extra_is_zero(name: str) -> None:
    network, (x, level, label, extra) = awake(name), batch(name)
    none = network(x, level, label)
    assert torch.equal(none, network(x, level, label, torch.zeros_like(extra)))
    assert not torch.allclose(none, network(x, level, label, extra))


@every
def test_every_input_matters(name: str) -> None:
    network, (x, level, *cond) = awake(name), batch(name)
    output = network(x, level, *cond)
    assert not torch.allclose(output, network(changed(x), level, *cond))
    assert not torch.allclose(output, network(x, level + 0.001, *cond))


@every
def test_unconditional_data_have_no_table(name: str) -> None:
    full = reads(name)
    state = Spec(full.shape, full.kind, vocab=full.vocab)
    network = networks.build(node(name), state=state, out=outs(name)[0])
    embedding = next(m for m in network.modules() if isinstance(m, Embedding))
    assert embedding.label is None and embedding.extra is None


@every
def test_samples_of_a_batch_do_not_meet(name: str) -> None:
    network, inputs = awake(name), batch(name)
    whole = network(*inputs)
    for row in range(len(whole)):
        alone = network(*(tensor[row : row + 1] for tensor in inputs))
        torch.testing.assert_close(alone, whole[row : row + 1], rtol=0, atol=1e-12)


@every
def test_every_parameter_gets_a_gradient(name: str) -> None:
    for gradient in gradients(awake(name), batch(name)):
        assert gradient.abs().sum() > 0


@every
def test_bf16_autocast_is_finite_and_near(name: str) -> None:
    network, inputs = awake(name).float(), batch(name, dtype=torch.float32)
    exact = network(*inputs)
    with torch.autocast("cpu", torch.bfloat16):
        output = network(*inputs)
    output.float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in network.parameters())  # type: ignore[union-attr]
    # A few dozen roundings to 8 bits.
    assert (output - exact).norm() < 0.05 * exact.norm()


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


def test_rotary_positions_see_differences_alone() -> None:
    """Su et al. 2021: q_m . k_n depends on m - n."""
    from diffusion_cli.networks.token_transformer import angles, turned

    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 8, dtype=torch.float64, generator=generator).unbind()
    turn = angles(12, 8).double()
    products = turned(q.expand(12, 8), turn) @ turned(k.expand(12, 8), turn).T
    for shift in (0, 1, 5):
        own = products.diagonal(shift)
        torch.testing.assert_close(own, own[:1].expand_as(own), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(products[0, 0], q @ k)
    assert not torch.allclose(products[0, 1], products[1, 0])


@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_the_order_of_tokens_matters(positions: str) -> None:
    network = awake("token_transformer", positions=positions)
    x, *cond = batch("token_transformer")
    turned = network(x.flip(1), *cond).flip(1)
    assert not torch.allclose(network(x, *cond), turned)
