"""Networks on a CUDA device: memory, layout, compilation and synchronisation."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from diffusion_cli.core import Spec
from diffusion_cli.networks import Network, networks, norm
from diffusion_cli.networks.blocks import Attention, norm_silu

pytestmark = pytest.mark.gpu

IMAGE = Spec((3, 32, 32), classes=10)
NODES: dict[str, dict[str, Any]] = {
    "dit": {"name": "dit", "depth": 12, "width": 192, "heads": 3},
    "mlp": {"name": "mlp", "depth": 16},
    "unet": {"name": "unet", "channels": 64, "dropout": 0.0},
}

every = pytest.mark.parametrize("name", sorted(NODES))


def build(name: str) -> Network:
    torch.manual_seed(0)
    network = networks.build(NODES[name], state=IMAGE, out=IMAGE.shape).cuda()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return network


def batch(rows: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator("cuda").manual_seed(1)
    x = torch.randn(rows, *IMAGE.shape, device="cuda", generator=generator)
    level = torch.rand(rows, device="cuda", generator=generator)
    return x, level, torch.arange(rows, device="cuda") % IMAGE.classes


def gradients(network: Network, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    network.zero_grad()
    with torch.autocast("cuda", torch.bfloat16):
        output = network(*inputs)
    output.float().square().mean().backward()
    return [p.grad.clone() for p in network.parameters() if p.grad is not None]


def peak(network: Network, mode: str, inputs: tuple[Tensor, ...]) -> int:
    """Largest memory of a forward and backward pass above the resting state."""
    network.recompute = mode  # type: ignore[assignment]
    gradients(network, inputs)
    torch.cuda.reset_peak_memory_stats()
    rest = torch.cuda.memory_allocated()
    gradients(network, inputs)
    return torch.cuda.max_memory_allocated() - rest


@pytest.mark.parametrize("name", ["dit", "unet"])
def test_recomputation_lowers_peak_memory(name: str) -> None:
    network, inputs = build(name), batch(128)
    whole = peak(network, "none", inputs)
    assert peak(network, "blocks", inputs) < 0.6 * whole
    assert peak(network, "attention", inputs) < whole
    assert peak(network, "norms", inputs) < whole


def near(one: list[Tensor], two: list[Tensor], tolerance: float) -> bool:
    """Whether all gradients together agree to a relative error."""
    error = sum((a - b).double().square().sum() for a, b in zip(one, two, strict=True))
    return bool(error < tolerance**2 * sum(a.double().square().sum() for a in one))


@every
@pytest.mark.parametrize("mode", ["none", "norms", "blocks", "attention"])
def test_compiled_equals_eager(name: str, mode: str) -> None:
    network, inputs = build(name), batch(16)
    twin = copy.deepcopy(network)
    twin.recompute = mode  # type: ignore[assignment]
    torch.compiler.reset()
    twin.compile(fullgraph=True)
    # Both round activations to bf16, at different places once kernels are fused.
    assert near(gradients(network, inputs), gradients(twin, inputs), 0.03)


def test_channels_last_equals_contiguous() -> None:
    network, inputs = build("unet").double(), batch(8)
    x, level, label = inputs[0].double(), inputs[1].double(), inputs[2]
    plain = network(x, level, label)
    network = network.to(memory_format=torch.channels_last)
    last = network(x.to(memory_format=torch.channels_last), level, label)
    torch.testing.assert_close(last, plain, rtol=1e-9, atol=1e-9)


@every
@pytest.mark.parametrize("mode", ["none", "norms", "blocks"])
def test_a_step_never_waits_for_the_device(name: str, mode: str) -> None:
    network, inputs = build(name), batch(4)
    network.recompute = mode  # type: ignore[assignment]
    gradients(network, inputs)
    torch.cuda.set_sync_debug_mode("error")
    try:
        gradients(network, inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    "backend",
    [SDPBackend.MATH, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.FLASH_ATTENTION],
)
@pytest.mark.parametrize("tokens", [49, 256])
def test_attention_backends_agree(backend: SDPBackend, tokens: int) -> None:
    torch.manual_seed(0)
    attention = Attention(256, heads=1, last=torch.nn.Linear(256, 256)).cuda()
    attention = attention.to(torch.bfloat16)
    x = torch.randn(4, tokens, 256, device="cuda", dtype=torch.bfloat16)
    exact = copy.deepcopy(attention).double()
    with sdpa_kernel(SDPBackend.MATH):
        reference = exact(x.double())
    with sdpa_kernel(backend):
        output = attention(x)
    assert (output.double() - reference).norm() < 0.01 * reference.norm()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_norm_and_silu_are_one_kernel(layout: torch.memory_format) -> None:
    """Values and gradients of the plain operations, which keep more."""
    assert norm._kernel(torch.device("cuda", torch.cuda.current_device()))
    torch.manual_seed(0)
    layer = norm_silu(96).cuda()
    x = torch.randn(3, 96, 17, 9, device="cuda", dtype=torch.bfloat16)
    x = x.contiguous(memory_format=layout).requires_grad_()
    exact = [
        each.detach().double().requires_grad_() for each in (x, *layer.parameters())
    ]
    wanted = norm.silu_norm(*exact, layer.num_groups, layer.eps)
    with torch.autocast("cuda", torch.bfloat16):
        found = layer(x)
    assert found.dtype is torch.bfloat16 and found.stride() == x.stride()
    slope = torch.randn_like(found)
    ours = torch.autograd.grad(found, (x, *layer.parameters()), slope)
    theirs = torch.autograd.grad(wanted, exact, slope.double())
    for one, two in zip((found, *ours), (wanted, *theirs), strict=True):
        assert (one.double() - two).norm() < 0.01 * two.norm()
