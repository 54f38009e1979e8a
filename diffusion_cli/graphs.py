"""Networks replayed as CUDA graphs: one launch for the hundreds of kernels of a call.

Small batches wait for Python to launch kernels. A graph holds all of a call's at once,
with the memory they work on: inputs are copied into it, a result is copied out of it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from diffusion_cli.networks import Network

LARGEST = 2**19  # numbers in a batch; larger ones keep a GPU busy, and memory
MANY = 8  # kinds of calls that are kept
TRIALS = 3  # replays that are compared with the network itself

_log = logging.getLogger(__name__)
Call = Callable[[], Tensor]
Recorder = Callable[[Call], Call]  # makes what repeats the work of a call, as a graph


def replay(networks: Iterable[Network], recorder: Recorder) -> None:
    """Let calls of these networks be replayed, in place: names and hooks stay.

    A network says no more, in its parameters, hooks or type, than before; only its
    `forward` is another. What a replay cannot do is left to the network itself:
    derivatives, training, large batches, hooks inside it.
    """
    for network in networks:
        network.forward = _Replayed(network, recorder)  # type: ignore[assignment]


def recorder(device: torch.device) -> Recorder | None:
    """What records on a device; None where a network is only ever called."""
    return CudaGraphs(device) if device.type == "cuda" else None


class _Recording:
    """One kind of call: its graph, and the inputs that the graph reads."""

    def __init__(self, inputs: list[Tensor | None], replay: Call) -> None:
        self.inputs, self.replay = inputs, replay
        self.trials = TRIALS

    def __call__(self, inputs: list[Tensor | None]) -> Tensor:
        for own, given in zip(self.inputs, inputs, strict=True):
            if own is not None and given is not None:
                own.copy_(given)
        return self.replay().clone()  # the next replay writes over it


class _Distrust(Exception):
    """A graph does not do what the network does."""


class _Replayed:
    """Stands in for `network.forward`.

    The first call of a kind only keeps its inputs, the second one is recorded on these,
    and tried on its own, so that a value which got into the graph shows. A kind is the
    shapes, layouts and types of the inputs, which of them are given, and autocast.

    The network must do the same at every call of a kind. Whatever goes wrong ends
    replaying for good, with a warning.
    """

    def __init__(self, network: Network, recorder: Recorder) -> None:
        self.network, self.recorder = network, recorder
        self.eager: Callable[..., Tensor] = network.forward
        self.seen: dict[Hashable, list[Tensor | None]] = {}
        self.recorded: dict[Hashable, _Recording] = {}
        self.over = False
        owners = [
            owner for m in network.modules() for owner in (m._parameters, m._buffers)
        ]
        self.weights = [(owner, name) for owner in owners for name in owner]
        self.places: list[int] = []
        _, *inner = network.modules()
        self.hooks = [
            hooks for m in inner for hooks in (m._forward_hooks, m._forward_pre_hooks)
        ]

    def __call__(self, *inputs: Tensor, **cond: Tensor | None) -> Tensor:
        given = [*inputs, *cond.values()]
        if self.over or not self._suits(given):
            return self.eager(*inputs, **cond)
        kind = _kind(given, tuple(cond))
        if kind not in self.recorded and kind not in self.seen:
            out = self.eager(*inputs, **cond)
            self._keep(kind, given)
            return out
        try:
            return self._replayed(kind, given, _Arguments(len(inputs), tuple(cond)))
        except Exception as error:  # also what a capture forbids, and no memory for it
            lines = str(error).strip().splitlines() or [type(error).__name__]
        self.over = True
        self.recorded.clear()
        self.seen.clear()
        hint = "graphs=false leaves them out"
        text = "the network is not replayed as a CUDA graph: %s; %s"
        _log.warning(text, lines[0], hint)
        return self.eager(*inputs, **cond)

    def _suits(self, given: list[Tensor | None]) -> bool:
        """Whether a graph can do all that this call does."""
        there = [tensor for tensor in given if tensor is not None]
        return (
            there[0].numel() <= LARGEST
            and all(type(tensor) is Tensor for tensor in there)
            and not self.network.training
            and not any(self.hooks)
            and forward_ad._current_level < 0
            and not torch._C._are_functorch_transforms_active()
            and not (torch.is_grad_enabled() and self._differentiated(there))
        )

    def _differentiated(self, inputs: list[Tensor]) -> bool:
        tensors = [*inputs, *self.network.parameters()]
        return any(tensor.requires_grad for tensor in tensors)

    def _keep(self, kind: Hashable, given: list[Tensor | None]) -> None:
        """Copies of the inputs, until the same kind comes again or many others do."""
        if len(self.recorded) < MANY:
            self.seen[kind] = [None if t is None else t.detach().clone() for t in given]
        if len(self.seen) > MANY:
            del self.seen[next(iter(self.seen))]

    def _replayed(
        self, kind: Hashable, given: list[Tensor | None], arguments: _Arguments
    ) -> Tensor:
        places = [_place(owner[name]) for owner, name in self.weights]
        if self.recorded and places != self.places:
            raise _Distrust("its weights were replaced")
        if kind not in self.recorded:
            self.recorded[kind] = self._record(self.seen.pop(kind), arguments)
            self.places = places
        recording = self.recorded[kind]
        out = recording(given)
        if not recording.trials:
            return out
        wanted = arguments.call(self.eager, given)
        if not torch.allclose(out, wanted, rtol=0, atol=0, equal_nan=True):
            raise _Distrust("it gave other numbers")
        recording.trials -= 1
        return wanted

    def _record(self, own: list[Tensor | None], arguments: _Arguments) -> _Recording:
        with _casting():
            return _Recording(
                own, self.recorder(lambda: arguments.call(self.eager, own))
            )


class _Arguments(NamedTuple):
    """How inputs are handed over: some by place, the others by name."""

    placed: int
    names: tuple[str, ...]

    def call(
        self, forward: Callable[..., Tensor], inputs: list[Tensor | None]
    ) -> Tensor:
        named = zip(self.names, inputs[self.placed :], strict=True)
        return forward(*inputs[: self.placed], **dict(named))


def _kind(given: list[Tensor | None], names: tuple[str, ...]) -> Hashable:
    device = next(tensor.device.type for tensor in given if tensor is not None)
    return (
        *names,
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device),
        *(t if t is None else (t.shape, t.stride(), t.dtype, t.device) for t in given),
    )


def _place(weight: Tensor | None) -> int:
    return 0 if weight is None else weight.data_ptr()


@contextmanager
def _casting() -> Iterator[None]:
    """Weights are cast anew: autocast's own copies end with the call around it."""
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)


class CudaGraphs:
    """Records on a stream of its own, into one pool of memory for all recordings.

    That is sound since results are copied out before another recording is replayed.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream: Any = None  # and a pool: both are made when they are needed
        self.pool: Any = None

    def __call__(self, call: Call) -> Call:
        if self.stream is None:
            self.stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
            self.pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        outside = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(outside)
        try:
            # a capture that fails leaves its stream the current one; this puts it back
            with torch.cuda.stream(self.stream):
                call()  # libraries take memory of their own for a new stream
                # other threads, such as those that pin memory, may go on
                how = {"stream": self.stream, "capture_error_mode": "thread_local"}
                with torch.cuda.graph(graph, self.pool, **how):
                    out = call()
        except BaseException:
            self._end()
            raise
        finally:
            outside.wait_stream(self.stream)

        def replay() -> Tensor:
            graph.replay()
            return out

        return replay

    def _end(self) -> None:
        """Give back the pool, if a capture failed before torch could do it."""
        place = (self.device.index, self.pool)
        with suppress(RuntimeError):  # it had ended
            torch._C._cuda_endAllocateToPool(*place)
            torch._C._cuda_releasePool(*place)
