"""What `recompute=norms` keeps, and that its gradients are those of torch."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from awakened import awake, batch, build, gradients
from test_recomputation import saved_bytes
from torch import Tensor, nn

from diffusion_cli.core import Spec
from diffusion_cli.networks import networks, norm
from diffusion_cli.networks.blocks import norm_silu
from diffusion_cli.networks.norm import NormSilu
from diffusion_cli.networks.recomputed import convolved

IMAGES = ("encoder", "unet")


class Section(nn.Module):
    """Norm, silu, dropout and a convolution, no number of which is special."""

    def __init__(self, rate: float = 0.3, mode: str = "norms") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm = norm_silu(12).double()
        self.conv = nn.Conv2d(12, 5, 3, padding=1).double()
        self.drop = nn.Dropout(rate) if rate else nn.Identity()
        self.mode: Any = mode
        nn.init.normal_(self.norm.weight)
        nn.init.normal_(self.norm.bias)

    def forward(self, x: Tensor) -> Tensor:
        torch.manual_seed(7)
        return convolved(self.norm, self.drop, self.conv, x, self.mode)


def image(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(shape or (2, 12, 4, 3), generator=generator).double()


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_first_and_second_derivatives_are_those_of_differences(rate: float) -> None:
    section = Section(rate)
    names, weights = zip(*section.named_parameters(), strict=True)

    def function(x: Tensor, *weights: Tensor) -> Tensor:
        given = dict(zip(names, weights, strict=True))
        return torch.func.functional_call(section, given, (x,))

    inputs = [image(1, 12, 2, 2).requires_grad_()]
    inputs += [weight.detach().clone().requires_grad_() for weight in weights]
    assert torch.autograd.gradcheck(function, inputs)
    few = [inputs[0], *(each.detach() for each in inputs[1:])]
    assert torch.autograd.gradgradcheck(function, few)


@pytest.mark.parametrize("kind", ["float64", "float32", "bf16"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("frozen", ["", "norm", "conv"])
def test_gradients_are_the_same_bit_by_bit(
    kind: str, layout: torch.memory_format, frozen: str
) -> None:
    found = []
    for mode in ("none", "norms"):
        section = Section(mode=mode).to(torch.float64 if kind == "float64" else None)
        x = image().contiguous(memory_format=layout)
        if kind != "float64":
            section, x = section.float(), x.float()
        for name, weight in section.named_parameters():
            weight.requires_grad_(not (frozen and name.startswith(frozen)))
        x = (x.bfloat16() if kind == "bf16" else x).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=kind == "bf16"):
            y = section(x)
        y.float().square().sum().backward()
        found.append([y, x.grad, *(weight.grad for weight in section.parameters())])
    for one, two in zip(*found, strict=True):
        assert (one is None) == (two is None)
        assert one is None or (one.dtype == two.dtype and torch.equal(one, two))


def test_it_is_evaluated_and_transformed_like_any_other() -> None:
    x, plain, section = image(), Section(mode="none"), Section()
    for each in (plain, section):
        each.eval()
    assert torch.equal(plain(x), section(x))
    with torch.no_grad():
        assert torch.equal(plain(x), section(x))
    _, tangent = torch.func.jvp(section, (x,), (x.sin(),))
    _, wanted = torch.func.jvp(plain, (x,), (x.sin(),))
    torch.testing.assert_close(tangent, wanted)


@pytest.mark.parametrize("name", IMAGES)
def test_dropout_and_bf16_leave_the_gradients_of_a_network(name: str) -> None:
    network, inputs = awake(name, dropout=0.3).float(), batch(name, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        kept = gradients(network, inputs)
        network.recompute = "norms"
        again = gradients(network, inputs)
    for one, two in zip(kept, again, strict=True):
        assert torch.equal(one, two)


def test_the_cifar_network_keeps_a_good_deal_less() -> None:
    with torch.device("meta"):
        state = Spec((3, 32, 32))
        network = networks.build({"name": "unet"}, state=state, out=state.shape)
        inputs = torch.empty(1, 3, 32, 32), torch.empty(1)
    # Storages of the meta device have no place in memory by which to tell them apart
    kept: dict[str, dict[Any, int]] = {}
    own = {weight.untyped_storage() for weight in network.parameters()}

    for network.recompute in ("none", "norms"):
        sizes = kept.setdefault(network.recompute, {})

        def keep(tensor: Tensor, sizes: dict[Any, int] = sizes) -> Tensor:
            storage = tensor.untyped_storage()
            if storage not in own:
                sizes[storage] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            network(*inputs)
    assert 1.8 * sum(kept["norms"].values()) < sum(kept["none"].values())


def test_a_section_keeps_its_input_and_a_byte_for_what_dropout_drew() -> None:
    x = image().requires_grad_()
    assert saved_bytes(Section(0.0), [x]) == 8 * x.numel()
    assert saved_bytes(Section(0.3), [x]) == (8 + 1) * x.numel()


@pytest.mark.parametrize("name", IMAGES)
def test_names_of_weights_are_those_of_older_runs(name: str) -> None:
    """Norm and silu were two layers: the next one keeps its number."""
    network = build(name)
    for owner, module in network.named_modules():
        if isinstance(module, nn.Sequential) and isinstance(module[0], NormSilu):
            assert isinstance(module[1], nn.Identity), owner
    keys = set(network.state_dict())
    last = {"unet": "exits.1.2.weight", "encoder": "exit.0.weight"}[name]
    assert last in keys and "down.0.0.norm1.weight" in keys


def test_a_kernel_that_cannot_run_or_errs_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """There is a reason in the log, and the norm is torch's."""
    norm._kernel.cache_clear()
    assert norm._kernel(torch.device("cpu")) is None  # which Triton is not for
    assert "norms take several kernels instead of one: " in caplog.text
    norm._kernel.cache_clear()
    monkeypatch.setattr(norm, "agrees", lambda *_: False)
    assert norm._kernel(torch.device("cpu")) is None
    assert "it gives other values" in caplog.text
    norm._kernel.cache_clear()


@pytest.mark.parametrize("wrong", [None, "forward", "backward"])
def test_the_probe_tells_wrong_values_and_wrong_gradients(wrong: str | None) -> None:
    def forward(
        x: Tensor, gamma: Tensor, beta: Tensor, groups: int, eps: float, kind: Any
    ) -> tuple[Tensor, ...]:
        out = norm.silu_norm(x.float(), gamma, beta, groups, eps).to(kind)
        return out + 0.1 * (wrong == "forward"), gamma, beta

    def backward(*inputs: Tensor) -> tuple[Tensor, ...]:
        own = [each.detach().float().requires_grad_() for each in inputs[:3]]
        with torch.enable_grad():
            out = norm.silu_norm(*own, 2, 1e-6)
        found = torch.autograd.grad(out, own, inputs[-1].float())
        return *found[:2], found[2] + 0.1 * (wrong == "backward")

    kernel: Any = SimpleNamespace(forward=forward, backward=backward)
    agree = norm.agrees(kernel, torch.device("cpu"), torch.float32)
    assert agree == (wrong is None)
