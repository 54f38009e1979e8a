"""Recording on a device, as far as it can be told without one; and commands that do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Dcli
from rerun import Rerun
from torch import Tensor

from diffusion_cli import graphs, rebuild


class Device:
    """Says what is asked of torch.cuda; a capture fails where `faults` says so."""

    def __init__(self, patch: pytest.MonkeyPatch, *faults: str) -> None:
        self.told: list[str] = []
        self.current = "default"
        self.faults = faults
        for name in ("Stream", "CUDAGraph", "graph_pool_handle", "current_stream"):
            patch.setattr(torch.cuda, name, getattr(self, name))
        patch.setattr(torch.cuda, "stream", self.stream)
        patch.setattr(torch.cuda, "graph", self.graph)
        for name in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
            patch.setattr(torch._C, name, partial(self._of_pool, name))

    def Stream(self, device: torch.device) -> Any:
        return SimpleNamespace(name="side", wait_stream=partial(self._wait, "side"))

    def current_stream(self, device: torch.device) -> Any:
        name = self.current
        return SimpleNamespace(name=name, wait_stream=partial(self._wait, name))

    def _wait(self, one: str, other: Any) -> None:
        self.told.append(f"{one} waits for {other.name}")

    def CUDAGraph(self) -> Any:
        return SimpleNamespace(replay=lambda: self.told.append("replay"))

    def graph_pool_handle(self) -> tuple[int, int]:
        return (0, 1)

    @contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        before, self.current = self.current, stream.name
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def graph(
        self, graph: Any, pool: Any, stream: Any, capture_error_mode: str
    ) -> Iterator[None]:
        assert (pool, capture_error_mode) == ((0, 1), "thread_local")
        self.told.append(f"capture on {self.current}")
        self.current = "left by a capture"
        yield
        self.current = stream.name

    def _of_pool(self, name: str, index: int, pool: tuple[int, int]) -> None:
        self.told.append(name.removeprefix("_cuda_"))
        if name in self.faults:
            raise RuntimeError("not recording to it")


CUDA = torch.device("cuda", 0)


def test_a_capture_lies_between_two_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch)
    record = graphs.recorder(CUDA)
    assert record is not None and graphs.recorder(torch.device("cpu")) is None
    seen: list[str] = []

    def call() -> Tensor:
        seen.append(device.current)
        return torch.ones(1)

    repeat = record(call)
    assert seen == ["side", "left by a capture"] and device.current == "default"
    assert repeat() is repeat()
    side, capture, default, *rest = device.told
    assert (side, capture) == ("side waits for default", "capture on side")
    assert default == "default waits for side" and rest == ["replay", "replay"]


@pytest.mark.parametrize("ended", [True, False])
def test_a_capture_that_fails_gives_back_stream_and_pool(
    ended: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pool is released here only if torch had not come that far."""
    device = Device(monkeypatch, *(["_cuda_endAllocateToPool"] * ended))
    record = graphs.recorder(CUDA)
    assert record is not None

    def call() -> Tensor:
        if device.current != "side":
            raise RuntimeError("it waits for the device")
        return torch.ones(1)

    with pytest.raises(RuntimeError, match="it waits for the device"):
        record(call)
    given_back = ["endAllocateToPool"] + ["releasePool"] * (not ended)
    assert device.told[2:] == [*given_back, "default waits for side"]
    assert device.current == "default"


TINY = [
    *(
        "dataset=digits",
        "network=dit_tiny",
        "network.depth=1",
        "network.width=32",
        "network.heads=2",
    ),
    *("objective.drop=0.1", "trainer.steps=2", "trainer.batch=8", "every.preview=0"),
    *("trainer.precision=fp32", "sampler.steps=6", "device=cpu"),
]
GUIDED = {
    "alone": (),
    "cfg": ("guidance=cfg", "guidance.scale=2", "guidance.high=3"),
    "auto": ("guidance=auto", "guidance.run=worse"),
    "gradients": (
        "guidance=inverse",
        "guidance.path=y.npz",
    ),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from diffusion_cli.cli import main

    folder = tmp_path_factory.mktemp("runs")
    for name in ("run", "worse"):
        seed = f"seed={len(name)}"
        assert main(["train", *TINY, seed, f"out={folder / name}"]) == 0
    np.savez(folder / "y.npz", samples=np.zeros((1, 1, 8, 8), np.float32))
    return folder


@pytest.mark.parametrize("how", GUIDED)
def test_samples_are_the_same_with_graphs(
    how: str, dcli: Dcli, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(runs)
    recorder = Rerun()
    monkeypatch.setattr(rebuild, "recorder", lambda device: recorder)
    arrays, told = {}, {}
    for graph in ("true", "false"):
        recorder.recorded = 0
        words = ["ckpt=run", "n=6", "batch=3", "format=npz", f"out={how}-{graph}"]
        words += [*GUIDED[how], f"graphs={graph}", "device=cpu", "precision=fp32"]
        got = dcli("sample", *words)
        assert got.code == 0, got.err
        assert bool(recorder.recorded) == (graph == "true" and how != "gradients")
        arrays[graph] = np.load(f"{how}-{graph}/samples.npz")["samples"]
        told[graph] = got.err.splitlines()[-1]
    assert np.array_equal(arrays["true"], arrays["false"])
    assert told["true"] == told["false"] and "network calls each" in told["true"]


def test_both_networks_of_a_guidance_are_replayed(
    dcli: Dcli, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(runs)
    recorder = Rerun()
    monkeypatch.setattr(rebuild, "recorder", lambda device: recorder)
    words = ["ckpt=run", "n=2", "device=cpu", "format=npz", "out=both"]
    assert dcli("sample", *words, *GUIDED["auto"]).code == 0
    assert recorder.recorded == 2


def test_graphs_are_no_part_of_a_request(dcli: Dcli, runs: Path) -> None:
    words = ["sample", f"ckpt={runs / 'run'}", "n=2", "device=cpu", "format=npz"]
    one, other = (dcli(*words, f"graphs={graph}") for graph in ("true", "false"))
    assert one.out == other.out and "2/2 already done" in other.err
