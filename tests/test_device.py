"""The device behind a name."""

from __future__ import annotations

import pytest
import torch

from diffusion_cli import device as devices


def test_a_cuda_device_has_an_index(monkeypatch: pytest.MonkeyPatch) -> None:
    # torch.cuda.set_device refuses a device without one
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(devices, "_demand_cuda", lambda device: None)
    assert devices.choose("auto") == torch.device("cuda:0")
    assert devices.choose("cuda") == torch.device("cuda:0")
    assert devices.choose("cuda:1") == torch.device("cuda:1")
    assert [devices.choose("auto", local).index for local in (0, 1, 2)] == [0, 1, 0]
    assert devices.choose("cpu") == torch.device("cpu")
