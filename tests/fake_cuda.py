"""A GPU that is not there: tensors of the CPU that say that they are on one.

They refuse to meet tensors of the CPU where a GPU would refuse, and whatever makes the
host wait for the device is noted with its place. What is computed is the CPU's, so the
numbers are too. What torch does inside its own functions is not watched.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import norms
import pytest
import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

import diffusion_cli
from diffusion_cli import graphs, loading, rng
from diffusion_cli.networks import norm

CUDA = torch.device("cuda", 0)
PACKAGE = str(Path(diffusion_cli.__file__).parent)
READS = {
    "item", "tolist", "__bool__", "__int__", "__float__", "__index__", "__contains__",
    "equal", "allclose", "nonzero", "argwhere", "masked_select", "unique", "bincount",
    "unique_consecutive", "is_nonzero", "multinomial",
}  # fmt: skip
INDEXING = {"__getitem__", "__setitem__"}
# whose kernels take one tensor of shape () of the CPU for a number
NUMBERS = {
    "add", "sub", "mul", "div", "truediv", "true_divide", "maximum", "minimum", "clamp",
    "eq", "ne", "lt", "le", "gt", "ge", "and", "or", "xor", "where",
}  # fmt: skip
ANYWHERE = {"copy_", "to", "type_as", "__set__"}


class Fake(Tensor):
    """On the device, as it says."""

    device = CUDA  # type: ignore[assignment]
    is_cuda, is_cpu = True, False


class FakeParameter(Fake, nn.Parameter):  # type: ignore[misc]
    """A weight on the device."""


class Wait(NamedTuple):
    """The host waited for the device: for what, and where in the package."""

    what: str
    where: str


class FakeCuda(TorchFunctionMode):
    """While it is entered, `device="cuda"` makes tensors that only say so."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[Wait] = []
        self.backwards = 0  # engines at work

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        name = getattr(func, "__name__", "")
        args, named, wanted = redirected(name, args, dict(kwargs or {}))
        named.pop("pin_memory", None)
        leaves = pytree.tree_leaves((args, named))
        for leaf in leaves if self.backwards else ():
            if isinstance(leaf, Tensor) and leaf.ndim:  # torch's own, unnamed
                tagged(leaf)
        there = [leaf for leaf in leaves if isinstance(leaf, Fake)]
        here = [x for x in leaves if isinstance(x, Tensor) and not isinstance(x, Fake)]
        if there:
            self._look(name, args, named, here)
        with torch._C.DisableTorchFunctionSubclass():
            out = func(*args, **named)
        async_ = bool(named.get("non_blocking"))
        if name == "copy_":
            if bool(here) and bool(there) and not async_:
                self._note("copy_ between host and device")
            return args[0]
        if wanted == "cpu" and there:
            if not async_:
                self._note(f"{name} to the host")
            return plain(out)
        if wanted == "cuda" and not there and name in ("to", "tensor", "as_tensor"):
            if not async_:
                self._note(f"{name} to the device")
            out = out.clone() if any(out is x for x in here) else out
        if there or wanted == "cuda":
            for leaf in pytree.tree_leaves(out):
                tagged(leaf)
        return out

    def _look(
        self, name: str, args: Any, named: Mapping[str, Any], here: list[Tensor]
    ) -> None:
        """Refuse what a GPU refuses, note what waits for it."""
        if name in ("numpy", "__array__"):
            raise TypeError(f"numpy cannot read the device ({place()})")
        alone = name == "where" and len(args) + len(named) == 1
        counts = name == "repeat_interleave" and len(args) > 1
        if name in READS or alone or (counts and isinstance(args[1], Tensor)):
            self._note(name)
        if name in INDEXING:
            self._indexed(name, args, here)
        elif here and name not in ANYWHERE:
            bare = name.strip("_")
            kinds = {bare, bare[1:]} if name.startswith("__") else {bare}  # __radd__
            suits = bool(kinds & NUMBERS) and all(x.ndim == 0 for x in here)
            changed = name.endswith("_") and not name.endswith("__")
            changed |= name.startswith("__i")
            into = named.get("out", args[0] if changed else None)
            if not suits or (isinstance(into, Tensor) and not isinstance(into, Fake)):
                shapes = ", ".join(str(tuple(x.shape)) for x in here)
                text = f"{name}: on the CPU are tensors of shape {shapes} ({place()})"
                raise RuntimeError(f"expected all tensors on the same device; {text}")
            if bare == "where":
                self._note("where copies a number")

    def _indexed(self, name: str, args: Any, here: list[Tensor]) -> None:
        if not isinstance(args[0], Fake):
            raise RuntimeError(f"indices of the device for the CPU's ({place()})")
        chosen = args[1] if isinstance(args[1], tuple) else (args[1],)
        masks = [i for i in chosen if isinstance(i, Tensor) and i.dtype == torch.bool]
        number = name == "__setitem__" and getattr(args[2], "ndim", 0) == 0
        if any(mask.ndim for mask in masks) and not number:
            self._note(f"{name} by a mask")
        if any(x.ndim for x in here):
            self._note(f"{name} by what is on the host")

    def _note(self, what: str) -> None:
        self.waits.append(Wait(what, place()))


def place() -> str:
    """Where in the package we are."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(PACKAGE):
            return f"{Path(file).relative_to(PACKAGE)}:{frame.f_lineno}"
        frame = frame.f_back
    return "outside"


def redirected(
    name: str, args: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any], str | None]:
    """The same arguments with the CPU for every device, and which one was wanted."""
    wanted = "cpu" if name == "cpu" else None
    if named.get("device") is not None:
        wanted, named["device"] = torch.device(named["device"]).type, "cpu"
    if name == "to":
        own: list[Any] = list(args[:1])
        for arg in args[1:]:
            if isinstance(arg, torch.device | str):
                wanted, arg = torch.device(arg).type, "cpu"
            elif isinstance(arg, Tensor):
                wanted = arg.device.type
            own.append(arg)
        args = tuple(own)
    return args, named, wanted


def tagged(x: Any) -> Any:
    """The same object, now on the device."""
    if type(x) is Tensor:
        x.__class__ = Fake
    elif type(x) is nn.Parameter:
        x.__class__ = FakeParameter
    return x


def plain(x: Any) -> Any:
    """A copy on the CPU."""
    if not isinstance(x, Fake):
        return x
    with torch._C.DisableTorchFunctionSubclass():
        return x.clone().as_subclass(Tensor)


class _Stream:
    def __init__(self, *args: Any, **named: Any) -> None: ...
    def wait_stream(self, other: Any) -> None: ...


@contextmanager
def fake_cuda() -> Iterator[FakeCuda]:
    """A GPU for the program; what made the host wait is in `waits`."""
    mode = FakeCuda()
    to, engine = nn.Module.to, torch.autograd._engine_run_backward
    group = torch._C._group_tensors_by_device_and_dtype
    autocast, scaler, loader = torch.autocast, torch.amp.GradScaler, loading.DataLoader

    def move(module: nn.Module, *args: Any, **named: Any) -> nn.Module:
        (_, *rest), named, wanted = redirected("to", (module, *args), named)
        with torch._C.DisableTorchFunctionSubclass():
            to(module, *rest, **named)
        for part in module.modules() if wanted == "cuda" else ():
            for weight in part._parameters.values():
                tagged(weight)
            for key, buffer in part._buffers.items():
                if type(buffer) is Tensor:
                    part._buffers[key] = tagged(buffer.clone())
        return module

    def backward(*args: Any, **named: Any) -> Any:
        mode.backwards += 1
        try:
            with mode:  # for hooks, and what is computed again
                return engine(*args, **named)
        finally:
            mode.backwards -= 1

    def grouped(lists: Any, *rest: Any) -> Any:
        found = group(lists, *rest)
        return {(held[0][0][0].device, key[1]): held for key, held in found.items()}

    fakes = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "get_device_name": lambda device: "no GPU",
        "synchronize": lambda: None,
        "max_memory_allocated": lambda device=None: 0,
        "is_bf16_supported": lambda including_emulation: True,
        "Stream": _Stream,
        "stream": lambda stream: nullcontext(),
        "current_stream": lambda device: _Stream(),
        "default_generators": (torch.default_generator,),
    }
    checks = torch.utils.checkpoint._allowed_determinism_checks_to_fns
    with pytest.MonkeyPatch.context() as patch:
        for name, value in fakes.items():
            patch.setattr(torch.cuda, name, value)
        for name in dir(torch.optim.Optimizer):
            if name.endswith("graph_capture_health_check"):
                patch.setattr(torch.optim.Optimizer, name, lambda optimizer: None)
        patch.setattr(Tensor, "record_stream", lambda x, stream: None)
        patch.setattr(rng, "_kernel", lambda device: None)  # Triton's
        patch.setitem(sys.modules, "diffusion_cli.norm_kernel", norms)  # likewise
        patch.setattr(diffusion_cli, "norm_kernel", norms, raising=False)
        norm._kernel.cache_clear()
        patch.setattr(graphs, "recorder", lambda device: None)
        patch.setattr(torch, "autocast", lambda _, *a, **k: autocast("cpu", *a, **k))
        patch.setattr(torch.amp, "GradScaler", lambda kind: scaler("cpu"))
        unpinned = {"pin_memory": False}
        patch.setattr(loading, "DataLoader", lambda *a, **k: loader(*a, **k | unpinned))
        patch.setattr(torch._C, "_group_tensors_by_device_and_dtype", grouped)
        patch.setattr(torch.autograd, "_engine_run_backward", backward)
        # what is saved for the backward pass comes back as the CPU's
        patch.setitem(checks, "default", lambda x: (x.shape, x.dtype))
        patch.setattr(nn.Module, "to", move)
        with mode:
            yield mode
    norm._kernel.cache_clear()
