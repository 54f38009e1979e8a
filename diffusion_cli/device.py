"""Where to compute, and how exactly: for commands, which alone choose a device."""

from __future__ import annotations

import os
import re

import torch

from diffusion_cli.errors import ConfigError, EnvironmentFault
from diffusion_cli.registry import near


def choose(name: str) -> torch.device:
    """The device behind `auto`, `cpu`, `cuda` or `cuda:1`; a CUDA one has an index."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        hint = "device=auto, cpu, cuda or cuda:1"
        meant = (
            "; did you mean `cuda`?" if name == "gpu" else near(name, ["cpu", "cuda"])
        )
        raise ConfigError(f"device: there is no `{name}`{meant}", hint)
    device = torch.device(name)
    if device.type == "cuda":
        _demand_cuda(device)
        return torch.device("cuda", device.index or 0)
    return device


def label(device: torch.device) -> str:
    """What a person calls the device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu, {torch.get_num_threads()} threads"


def tune(device: torch.device, deterministic: bool) -> None:
    """Set what torch keeps for the whole program: tensor cores, or exact repetition."""
    if device.type != "cuda":
        return  # the CPU repeats exactly at a given number of threads
    torch.cuda.set_device(device)
    torch.set_float32_matmul_precision("high")  # TF32
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = not deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)


def memory(device: torch.device) -> float:
    """Most memory the program held so far, in GiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB on Linux


def _demand_cuda(device: torch.device) -> None:
    hint = "device=cpu"
    count = torch.cuda.device_count()
    if 0 < count <= (device.index or 0):
        message = f"device: there is no {device}, this machine has {count}"
        raise EnvironmentFault(message, hint, "NO-DEVICE")
    try:
        torch.zeros(1, device=device)
    except (AssertionError, RuntimeError) as error:  # no CUDA build, or no driver
        reason = str(error).strip().splitlines()[0]
        message = f"device: no CUDA device: {reason}"
        raise EnvironmentFault(message, hint, "NO-DEVICE") from error
