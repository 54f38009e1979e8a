"""The device behind a name."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch

from diffusion_cli import device as devices
from diffusion_cli.errors import EnvironmentFault


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


def test_a_process_touches_its_own_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    # each context takes half a GiB, and all would lie on the first GPU
    asked: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch, "zeros", lambda n, device: asked.append(device))
    assert devices.choose("cuda", 3) == torch.device("cuda:3")
    assert asked == [torch.device("cuda:3")]


def test_no_gpu_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(EnvironmentFault, match="no CUDA device"):
        devices.choose("cuda", 1)


FAULTS = """
import resource, torch
from diffusion_cli import device

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def rounds(count):
    for _ in range(count):
        held = [torch.ones(2**19) for _ in range(6)]  # 2 MiB each
        while held:
            held.pop()

device.tune(torch.device("cpu"), deterministic=False)
rounds(3)
before = faults()
rounds(20)
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_a_tuned_cpu_uses_its_pages_again() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], capture_output=True, text=True
    )
    assert int(done.stdout) < 20 * 6 * 2**21 / 4096 / 100, done.stderr
