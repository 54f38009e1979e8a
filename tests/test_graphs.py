"""Replaying a network: when it is recorded, what is trusted, and what is refused."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from rerun import Rerun
from torch import Tensor, nn

from diffusion_cli import graphs
from diffusion_cli.core import Spec
from diffusion_cli.device import attention
from diffusion_cli.networks import Network, networks

IMAGE = Spec((1, 8, 8), classes=3)
UNET = {"name": "unet", "channels": 8, "multipliers": [1], "attention": [], "blocks": 1}


def unet(**changes: Any) -> Network:
    torch.manual_seed(0)
    network = networks.build(UNET | changes, state=IMAGE, out=IMAGE.shape)
    for weight in network.parameters():
        nn.init.normal_(weight, std=0.1)
    return network.eval().requires_grad_(False)


def given(seed: int, batch: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, 1, 8, 8, generator=generator)
    return x, torch.rand(batch, generator=generator)


def replayed(recorder: Any, **changes: Any) -> tuple[Network, Network]:
    """A network that is replayed, and its twin that is not."""
    network = unet(**changes)
    graphs.replay([network], recorder)
    return network, unet(**changes)


@pytest.fixture
def warned(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.WARNING)
    return lambda: [record.getMessage() for record in caplog.records]


def test_every_call_gives_what_the_network_gives(
    warned: Callable[[], list[str]],
) -> None:
    recorder = Rerun()
    network, plain = replayed(recorder)
    label = torch.tensor([0, -1])
    outs, wanted = [], []
    for seed in range(8):
        x, level = given(seed)
        outs.append(network(x, level, label=label))
        wanted.append(plain(x, level, label=label))
    # all at the end: later calls must leave what earlier ones returned
    assert all(map(torch.equal, outs, wanted))
    assert recorder.recorded == 1 and recorder.replayed == 7  # the first one is eager
    places = {out.data_ptr() for out in [*outs, *recorder.outs]}
    assert len(places) == len(outs) + 1, "a result is a copy of the static buffer"
    assert not warned()


def test_names_hooks_and_weights_stay_as_they_are() -> None:
    network, plain = replayed(Rerun())
    assert list(network.state_dict()) == list(plain.state_dict())
    rows = 0

    def count(network: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
        nonlocal rows
        rows += len(inputs[0])

    network.register_forward_hook(count)
    for seed in range(5):
        network(*given(seed))
    assert rows == 10


def test_each_kind_of_call_is_recorded_for_itself() -> None:
    """Batches of guidance, a label or none, precision, layout: interleaved."""
    recorder = Rerun()
    network, plain = replayed(recorder)
    label = torch.tensor([1, 2])

    def calls(net: Network, seed: int) -> list[Tensor]:
        x, level = given(seed)
        double = (torch.cat((x, x)), level.repeat(2))
        with torch.autocast("cpu", torch.bfloat16):
            half = net(x, level, label=label)
        last = x.to(memory_format=torch.channels_last)
        one = net(x.expand(2, 1, 8, 8)[:, :, ::1], level, label=label)
        return [
            one,
            net(*double, label=torch.cat((label, label))),
            half,
            net(x, level),
            net(x, level, label=None),
            net(last.as_strided(x.shape, (64, 1, 8, 1)), level),
        ]

    for seed in range(4):
        ours, theirs = calls(network, seed), calls(plain, seed)
        assert [out.dtype for out in ours] == [out.dtype for out in theirs]
        assert all(map(torch.equal, ours, theirs))
    assert recorder.recorded == 6


def test_autocast_keeps_no_weight_while_recording() -> None:
    """A weight that was cast before would be read, stale, by every replay."""
    enabled: list[bool] = []

    class Looking(Rerun):
        def __call__(self, call: Callable[[], Tensor]) -> Callable[[], Tensor]:
            enabled.append(torch.is_autocast_cache_enabled())
            return super().__call__(call)

    network, _ = replayed(Looking())
    for seed in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            network(*given(seed))
            assert torch.is_autocast_cache_enabled()
    assert enabled == [False]


def test_weights_that_change_in_place_are_seen(warned: Callable[[], list[str]]) -> None:
    network, plain = replayed(Rerun())
    for seed in range(8):
        for net in (network, plain):
            for weight in net.parameters():
                weight.mul_(1.01)
        assert torch.equal(network(*given(seed)), plain(*given(seed)))
    assert not warned()


def assign(network: nn.Module) -> None:
    part, name = next((m, n) for m in network.modules() for n in m._parameters)
    weight = nn.Parameter(2 * getattr(part, name), requires_grad=False)
    setattr(part, name, weight)


def move(network: nn.Module) -> None:
    for weight in network.parameters():
        weight.data = 2 * weight.data


@pytest.mark.parametrize("replace", [assign, move])
def test_weights_that_lie_elsewhere_end_it(
    replace: Callable[[nn.Module], None], warned: Callable[[], list[str]]
) -> None:
    recorder = Rerun()
    network, plain = replayed(recorder)
    for seed in range(4):
        network(*given(seed))
    replace(network)
    replace(plain)
    for seed in range(4):
        assert torch.equal(network(*given(seed)), plain(*given(seed)))
    assert recorder.replayed == 3
    (line,) = warned()
    assert "weights were replaced" in line and "graphs=false" in line


@pytest.mark.parametrize(
    ("recorder", "reason"),
    [
        (Rerun(twist=lambda out: out.add_(1e-6)), "other numbers"),
        (Rerun(fault=RuntimeError("stream is capturing\nmore")), "stream is capturing"),
        (Rerun(fault=torch.OutOfMemoryError("no room")), "no room"),
        (Rerun(fault=NotImplementedError()), "NotImplementedError"),
    ],
)
def test_what_is_not_trusted_is_never_used_again(
    recorder: Rerun, reason: str, warned: Callable[[], list[str]]
) -> None:
    network, plain = replayed(recorder)
    for seed in range(5):
        assert torch.equal(network(*given(seed)), plain(*given(seed)))
        bigger = given(seed, batch=3)
        assert torch.equal(network(*bigger), plain(*bigger))
    assert recorder.replayed <= 1
    (line,) = warned()
    assert reason in line and "more" not in line


def test_nan_is_as_good_as_nan(warned: Callable[[], list[str]]) -> None:
    recorder = Rerun()
    network, _ = replayed(recorder)
    x, level = torch.full((2, 1, 8, 8), torch.nan), torch.zeros(2)
    for _ in range(5):
        assert network(x, level).isnan().all()
    assert recorder.replayed == 4 and not warned()


def test_a_value_that_is_written_into_the_record_is_found(
    warned: Callable[[], list[str]],
) -> None:
    """It is recorded on one call's inputs and tried on those of the next one."""

    def baked(call: Callable[[], Tensor]) -> Callable[[], Tensor]:
        out = call()
        return lambda: out

    network, plain = replayed(baked)
    for seed in range(2):
        assert torch.equal(network(*given(seed)), plain(*given(seed)))
    assert "other numbers" in warned()[0]


class Named(Network):
    """Two conditions of one shape, which do not mean the same."""

    def forward(
        self,
        x: Tensor,
        level: Tensor,
        label: Tensor | None = None,
        extra: Tensor | None = None,
    ) -> Tensor:
        x = x if label is None else x + label[:, None, None, None]
        return x if extra is None else x * extra[:, None, None, None]


def test_a_condition_is_told_from_another_by_its_name() -> None:
    recorder, network, plain = Rerun(), Named().eval(), Named()
    graphs.replay([network], recorder)
    for seed in range(4):
        x, level = given(seed)
        for name in ("label", "extra"):
            named = {name: level + 2}
            assert torch.equal(network(x, level, **named), plain(x, level, **named))
        assert torch.equal(network(x, level, level), plain(x, level, level))
    assert recorder.recorded == 3


class Switched(Network):
    """What it does depends on a flag, as under guidance by a spoilt network."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.spoilt = False

    def forward(
        self,
        x: Tensor,
        level: Tensor,
        label: Tensor | None = None,
        extra: Tensor | None = None,
    ) -> Tensor:
        return -x if self.spoilt else x + level[:, None, None, None]


class Once(Rerun):
    """Python runs while it records, and not again: flags are what they were."""

    def __init__(self, network: Switched) -> None:
        super().__init__()
        self.network = network

    def __call__(self, call: Callable[[], Tensor]) -> Callable[[], Tensor]:
        spoilt, replay = self.network.spoilt, super().__call__(call)

        def frozen() -> Tensor:
            self.network.spoilt, now = spoilt, self.network.spoilt
            try:
                return replay()
            finally:
                self.network.spoilt = now

        return frozen


def test_a_network_that_is_switched_between_calls_is_found_out(
    warned: Callable[[], list[str]],
) -> None:
    network, plain = Switched().eval().requires_grad_(False), Switched().eval()
    graphs.replay([network], Once(network))
    for seed in range(6):
        network.spoilt = plain.spoilt = bool(seed % 2)
        assert torch.equal(network(*given(seed)), plain(*given(seed)))
    assert "other numbers" in warned()[0]


def test_what_looks_into_the_network_is_not_left_out() -> None:
    recorder = Rerun()
    network, _ = replayed(recorder)
    seen: list[int] = []
    inner = next(part for part in network.modules() if isinstance(part, nn.Conv2d))
    handle = inner.register_forward_hook(lambda *_: seen.append(1))
    for seed in range(4):
        network(*given(seed))
    assert len(seen) == 4 and not recorder.recorded
    handle.remove()
    for seed in range(4):
        network(*given(seed))
    assert recorder.recorded == 1


def by_state(network: Network, seed: int) -> Tensor:
    x, level = given(seed)
    with torch.enable_grad():
        out = network(x.requires_grad_(), level)
        (gradient,) = torch.autograd.grad(out.sum(), x)
    return gradient


def by_weights(network: Network, seed: int) -> Tensor:
    weight = next(network.parameters()).requires_grad_()
    (gradient,) = torch.autograd.grad(network(*given(seed)).sum(), weight)
    return gradient


def forwards(network: Network, seed: int) -> Tensor:
    x, level = given(seed)
    with attention(plain=True), torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        out = torch.autograd.forward_ad.unpack_dual(network(dual, level)).tangent
    assert out is not None
    return out


def transformed(network: Network, seed: int) -> Tensor:
    x, level = given(seed)
    call = torch.func.vmap(lambda y: network(y, level))
    with attention(plain=True):
        return call(torch.stack((x, 2 * x)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("way", [by_state, by_weights, forwards, transformed])
@torch.no_grad()
def test_derivatives_pass_by(way: Callable[[Network, int], Tensor]) -> None:
    recorder = Rerun()
    network, plain = replayed(recorder)
    with torch.enable_grad() if way is by_weights else torch.no_grad():
        for seed in range(4):
            assert torch.equal(way(network, seed), way(plain, seed))
    assert not recorder.recorded


def test_training_large_batches_and_other_types_pass_by(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recorder = Rerun()
    network, _ = replayed(recorder, dropout=0.5)
    monkeypatch.setattr(graphs, "LARGEST", 2 * 64)
    for seed in range(3):
        network(*given(seed, batch=3))
    network.train()
    for seed in range(3):
        network(*given(seed))
    assert not recorder.recorded
    network.eval()
    for seed in range(3):
        network(*given(seed))
    assert recorder.recorded == 1


def test_few_kinds_of_calls_are_kept() -> None:
    recorder = Rerun()
    network, plain = replayed(recorder)
    for batch in range(1, 30):  # once each: none is worth recording
        network(*given(batch, batch))
    assert not recorder.recorded
    for turn in range(3):
        for batch in range(1, graphs.MANY + 4):
            for seed in (turn, turn + 10):
                x = given(seed, batch)
                assert torch.equal(network(*x), plain(*x))
    assert recorder.recorded == graphs.MANY


def test_a_network_that_fails_fails_as_it_does_alone() -> None:
    network, plain = replayed(Rerun())
    for _ in range(3):
        network(*given(0))
    texts = []
    for net in (network, plain):
        with pytest.raises(RuntimeError) as caught:
            net(torch.zeros(2, 5, 8, 8), torch.zeros(2))
        texts.append(str(caught.value))
    assert texts[0] == texts[1]
