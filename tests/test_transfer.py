"""Copies beside the computing: who waits for whom, as far as a CPU can tell."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from diffusion_cli.transfer import Transfer

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


class Stream(NamedTuple):
    name: str
    told: list[str]

    def wait_stream(self, other: Stream) -> None:
        self.told.append(f"{self.name} waits for {other.name}")


def test_nothing_changes_on_a_cpu() -> None:
    given = [torch.arange(3), torch.ones(2)]
    assert all(map(torch.equal, Transfer(CPU)(*given), given))


def test_the_step_waits_for_its_copies_and_keeps_their_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[str] = []
    copying, computing = Stream("copying", told), Stream("computing", told)
    now = [computing]

    @contextmanager
    def stream(chosen: Stream) -> Iterator[None]:
        now.append(chosen)
        yield
        now.pop()

    def to(tensor: Tensor, device: torch.device, non_blocking: bool) -> Tensor:
        assert device == CUDA and non_blocking
        told.append(f"{now[-1].name} copies {len(tensor)}")
        return tensor.clone()

    def record(tensor: Tensor, by: Stream) -> None:
        told.append(f"{by.name} uses {len(tensor)}")

    named: dict[str, Any] = {
        "Stream": lambda device: copying,
        "stream": stream,
        "current_stream": lambda device: now[-1],
    }
    for name, stub in named.items():
        monkeypatch.setattr(torch.cuda, name, stub)
    monkeypatch.setattr(Tensor, "to", to)
    monkeypatch.setattr(Tensor, "record_stream", record)
    move = Transfer(CUDA)
    one, two = move(torch.zeros(1), torch.ones(2))
    assert one.tolist() == [0] and two.tolist() == [1, 1]
    assert told == [
        "copying copies 1",
        "copying copies 2",
        "computing waits for copying",
        "computing uses 1",
        "computing uses 2",
    ]
