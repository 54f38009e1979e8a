"""Networks replayed as CUDA graphs: the same bits, and what no graph can hold."""

from __future__ import annotations

import logging
import time

import pytest
import torch
from torch import Tensor, nn

from diffusion_cli import device as devices
from diffusion_cli import graphs
from diffusion_cli.core import Spec
from diffusion_cli.networks import Network, networks

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda", 0)
IMAGE = Spec((3, 32, 32), classes=10)


def build(name: str) -> Network:
    torch.manual_seed(0)
    network = networks.build({"name": name}, state=IMAGE, out=IMAGE.shape).to(CUDA)
    for weight in network.parameters():
        nn.init.normal_(weight, std=0.05)
    return network.to(memory_format=torch.channels_last).eval().requires_grad_(False)


def given(seed: int, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, 3, 32, 32, generator=generator)
    label = torch.randint(-1, 10, (batch,), generator=generator)
    return x.to(CUDA), torch.rand(batch, generator=generator).to(CUDA), label.to(CUDA)


def replay(network: Network) -> None:
    record = graphs.recorder(CUDA)
    assert record is not None
    graphs.replay([network], record)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["unet", "dit", "mlp"])
def test_a_replay_has_the_bits_of_the_network(
    name: str, precision: str, caplog: pytest.LogCaptureFixture
) -> None:
    devices.tune(CUDA, deterministic=False)
    caplog.set_level(logging.WARNING)
    network, plain = build(name), build(name)
    replay(network)
    around = devices.autocast(CUDA, precision)
    with torch.no_grad():
        for seed in range(8):
            for batch in (1, 2, 16):  # interleaved, as under guidance
                x, level, label = given(seed, batch)
                with around():
                    ours = network(x, level, label=label)
                    theirs = plain(x, level, label=label)
                assert torch.equal(ours, theirs)
    assert not caplog.records
    recorded = network.forward.recorded  # type: ignore[attr-defined]
    assert len(recorded) == 3


class Waiting(Network):
    """Its way depends on a value."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(
        self,
        x: Tensor,
        level: Tensor,
        label: Tensor | None = None,
        extra: Tensor | None = None,
    ) -> Tensor:
        return x if x.sum() > 0 else -x


def test_a_network_that_waits_is_left_alone_and_others_go_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    waiting, network, plain = Waiting().to(CUDA).eval(), build("unet"), build("unet")
    record = graphs.recorder(CUDA)
    assert record is not None
    graphs.replay([waiting, network], record)
    with torch.no_grad():
        for seed in range(8):
            x, level, _ = given(seed, 2)
            assert torch.equal(waiting(x, level), x if x.sum() > 0 else -x)
            assert torch.equal(network(x, level), plain(x, level))
    assert len(caplog.records) == 1
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    assert len(network.forward.recorded) == 1  # type: ignore[attr-defined]


def test_a_replay_does_not_wait_for_the_device() -> None:
    network = build("unet")
    replay(network)
    x, level, label = given(0, 4)
    with torch.no_grad():
        for _ in range(graphs.TRIALS + 2):
            network(x, level, label=label)
        torch.cuda.set_sync_debug_mode("error")
        try:
            network(x, level, label=label)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_one_image_is_faster() -> None:
    devices.tune(CUDA, deterministic=False)
    took = {}
    for replayed in (False, True):
        network = build("unet")
        if replayed:
            replay(network)
        x, level, _ = given(0, 1)
        with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
            for call in range(30):
                if call == 10:
                    torch.cuda.synchronize()
                    begun = time.perf_counter()
                network(x, level)
            torch.cuda.synchronize()
        took[replayed] = time.perf_counter() - begun
    assert took[True] < took[False] / 2
