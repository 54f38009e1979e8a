"""Where to compute, how exactly, and in how much memory; commands alone choose."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Literal

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from diffusion_cli.errors import ConfigError, EnvironmentFault, OutOfMemory
from diffusion_cli.registry import near

Precision = Literal["fp32", "bf16", "fp16"]


def choose(name: str, local: int = 0) -> torch.device:
    """The device behind `auto`, `cpu`, `cuda` or `cuda:1`; a CUDA one has an index.

    `local` counts the processes of this machine: each has a GPU of its own.
    """
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
        if device.index is None:
            index = local % max(1, torch.cuda.device_count())
            device = torch.device("cuda", index)
        _demand_cuda(device)
    return device


def label(device: torch.device) -> str:
    """What a person calls the device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu, {torch.get_num_threads()} threads"


def tune(device: torch.device, deterministic: bool) -> None:
    """Set what torch keeps for the whole program: tensor cores, or exact repetition.

    On a CPU, which repeats exactly at a given number of threads: memory. glibc takes
    the largest block that was freed, below 32 MiB, for the size of what comes and goes;
    it then keeps twice as much, where each batch would wait for new pages otherwise.
    """
    if device.type != "cuda":
        torch.empty(31 * 2**20, dtype=torch.uint8)  # never touched, freed at once
        return
    torch.cuda.set_device(device)
    torch.set_float32_matmul_precision("high")  # TF32
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = not deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)


def peak(device: torch.device) -> float:
    """Most memory the program held so far, in GiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB on Linux


def precision(device: torch.device, wanted: str) -> Precision:
    """What `trainer.precision` means on a device.

    `auto` is bf16 where the device multiplies it faster than float32: CUDA since
    Ampere, a CPU with AVX512-BF16 or AMX.
    """
    if wanted == "fp16" and device.type == "cpu":
        message = "trainer.precision: fp16 needs a GPU"
        raise ConfigError(message, "trainer.precision=bf16 or fp32")
    if wanted != "auto":
        return wanted  # type: ignore[return-value]  # one of the three, by the schema
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        # torch has no public probe for these
        fast = (
            torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        )
    return "bf16" if fast else "fp32"


def autocast(
    device: torch.device, precision: str
) -> Callable[[], AbstractContextManager[object]]:
    """What `Model.around` is to be: entered around the network alone."""
    if precision == "fp32":
        return nullcontext
    dtype = torch.bfloat16 if precision == "bf16" else torch.float16
    return partial(torch.autocast, device.type, dtype)


def attention(plain: bool) -> AbstractContextManager[object]:
    """Attention by plain products where fused kernels lack a derivative.

    Fused ones have no second derivative and no forward one. The choice holds for all
    threads, and so for what the backward pass computes again.
    """
    return sdpa_kernel(SDPBackend.MATH) if plain else nullcontext()


@contextmanager
def compilation(wanted: bool) -> Iterator[None]:
    """Turn what `torch.compile` cannot do here into `EnvironmentFault`."""
    if not wanted:
        yield
        return
    from torch._dynamo.exc import BackendCompilerFailed

    try:
        yield
    except BackendCompilerFailed as error:
        reason = str(error).strip().splitlines()[0]
        message = f"trainer.compile: torch.compile does not work here: {reason}"
        raise EnvironmentFault(message, "trainer.compile=false", "COMPILE") from error


@contextmanager
def memory(where: str, hint: str) -> Iterator[None]:
    """Turn what torch says about memory into `OutOfMemory`."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        text = str(error)
        host = isinstance(error, MemoryError) or "DefaultCPUAllocator" in text
        if not (host or isinstance(error, torch.OutOfMemoryError)):
            raise
        peak = ""
        if torch.cuda.is_available():
            peak = f", peak {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB"
        what = text.strip().splitlines()[0] if text else "the host has no memory left"
        message = f"{where}: out of memory{peak}: {what}"
        raise OutOfMemory(message, hint, "OUT-OF-MEMORY") from error


def _demand_cuda(device: torch.device) -> None:
    hint = "device=cpu"
    count = torch.cuda.device_count()
    if 0 < count <= device.index:
        message = f"device: there is no {device}, this machine has {count}"
        raise EnvironmentFault(message, hint, "NO-DEVICE")
    try:
        torch.zeros(1, device=device)
    except (AssertionError, RuntimeError) as error:  # no CUDA build, or no driver
        reason = str(error).strip().splitlines()[0]
        message = f"device: no CUDA device: {reason}"
        raise EnvironmentFault(message, hint, "NO-DEVICE") from error
