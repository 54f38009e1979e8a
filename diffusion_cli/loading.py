"""From a data set to the micro-batches of every step, whoever loads them.

Step k trains on elements k batch .. (k + 1) batch - 1 of an endless shuffled sequence.
So batches are arithmetic on (seed, step): no state to save, and neither the number of
workers nor the size of a micro-batch can change one.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import chain, islice
from multiprocessing.util import get_temp_dir
from types import TracebackType
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from diffusion_cli import failpoints
from diffusion_cli.core import Spec
from diffusion_cli.datasets import Dataset
from diffusion_cli.errors import ConfigError, DataError, DcliError, WorkerError
from diffusion_cli.rng import Ahead, Rng, shuffled
from diffusion_cli.transfer import Transfer

AHEAD = 2**16  # indices that are shuffled in one go
PATIENCE = 300  # seconds a worker may take for one micro-batch
TOLERANCE = 1e-3  # images may leave [-1, 1] by this much


class MicroBatch(NamedTuple):
    """What one forward pass sees; `rows` (B,) are its positions in the global batch."""

    x0: Tensor
    cond: dict[str, Tensor]
    rows: Tensor


def batches(
    data: Dataset,
    *,
    seed: int,
    first: int,
    last: int,
    batch: int,
    micro_batch: int,
    device: torch.device,
    workers: int,
    reference: int = 0,
    rank: int = 0,
    size: int = 1,
) -> Iterator[Iterator[MicroBatch]]:
    """The micro-batches of the steps `first .. last - 1`, lazily, an iterator a step.

    Of `size` ranks, each gets equally many consecutive rows of every global batch.

    With `reference`, the first micro-batch of a step has as many more samples among its
    conditions, `reference` and `reference_label`, drawn by a stream of their own.

    The first micro-batch is checked against the `Spec` of the data (`DataError`). Data
    that is resident on the device is gathered there; other data passes through workers
    and pinned memory. Every step must be used up before the next one is asked for.
    """
    order = _Order(seed, batch, micro_batch, len(data), reference, rank, size)
    if data.to(device):
        stream = _resident(data, order, first, last, device)
    else:
        stream = _loaded(data, order, first, last, device, workers)
    start = next(stream, None)
    if start is None:
        return
    inspect(start, data.spec)
    stream = chain((start,), stream)
    for _ in range(first, last):
        yield islice(stream, len(order.starts))


class _Order(NamedTuple):
    """Which samples a step sees, and the random numbers of their augmentation."""

    seed: int
    batch: int
    micro_batch: int
    length: int
    reference: int
    rank: int
    size: int

    @property
    def starts(self) -> range:
        """The first rows of this rank's micro-batches."""
        share = self.batch // self.size
        return range(self.rank * share, (self.rank + 1) * share, self.micro_batch)

    def samples(self, place: Tensor) -> Tensor:
        return shuffled(place, self.length, self.seed)

    def rng(self, step: int, rows: Tensor) -> Rng:
        return Rng(self.seed, rows, step).child("augment")

    def micro(self, data: Dataset, index: Tensor, rng: Rng, first: bool) -> MicroBatch:
        """The samples at `index`; the first of a step bring its reference."""
        x0, cond = data.batch(index, rng)
        rows, step = rng.rows, rng.step
        if self.reference and first:
            drawn = torch.arange(self.reference, device=rows.device)
            rng = Rng(self.seed, drawn, step).child("reference")
            chosen = rng.integers(self.length, (self.reference,))
            more, about = data.batch(chosen, rng.child("augment"))
            named = {f"reference_{key}": value for key, value in about.items()}
            cond = {**cond, "reference": more, **named}
        return MicroBatch(x0, cond, rows)


def _resident(
    data: Dataset, order: _Order, first: int, last: int, device: torch.device
) -> Iterator[MicroBatch]:
    parts = torch.arange(order.batch, device=device)
    parts = parts.view(order.size, -1, order.micro_batch)
    rngs = [Ahead(order.rng(first, rows)) for rows in parts[order.rank]]
    stride = max(1, AHEAD // order.batch)  # the walk of `shuffled` waits for the device
    for start in range(first, last, stride):
        stop = min(last, start + stride)
        place = torch.arange(start * order.batch, stop * order.batch, device=device)
        steps = order.samples(place).view(-1, *parts.shape)[:, order.rank]
        for step, chosen in enumerate(steps, start):
            for part, (rng, index) in enumerate(zip(rngs, chosen, strict=True)):
                yield order.micro(data, index, rng.at(step), first=part == 0)


class _Task(NamedTuple):
    step: int
    row: int  # of the first sample


class _Requests(TorchDataset[MicroBatch | DcliError]):
    """Serves whole micro-batches by (step, row): all that a worker is told."""

    def __init__(self, data: Dataset, order: _Order) -> None:
        self.data, self.order = data, order

    def __getitem__(self, task: _Task) -> MicroBatch | DcliError:
        rows = torch.arange(task.row, task.row + self.order.micro_batch)
        rng = self.order.rng(task.step, rows)
        index = self.order.samples(task.step * self.order.batch + rows)
        try:
            failpoints.hit("data.item", task.step)
            first = task.row == self.order.starts.start
            return self.order.micro(self.data, index, rng, first)
        except Exception as error:  # a data set may raise anything; workers lose types
            return self._blame(index, rng, error)

    def _blame(self, index: Tensor, rng: Rng, error: Exception) -> DcliError:
        """The error of the first sample that fails alone."""
        for number, row in zip(index[:, None], rng.rows[:, None], strict=True):
            try:
                self.data.batch(number, rng.of(row))
            except Exception as cause:
                error, index = cause, number
                break
        if isinstance(error, DcliError):
            return error
        where = "sample " + ", ".join(str(i) for i in index.tolist()[:5])
        what = f"{type(error).__name__}: {error}"
        return DataError(f"dataset: {where} cannot be loaded: {what}", code="DATA-ITEM")


def _loaded(
    data: Dataset,
    order: _Order,
    first: int,
    last: int,
    device: torch.device,
    workers: int,
) -> Iterator[MicroBatch]:
    loader = DataLoader(
        _Requests(data, order),
        batch_size=None,
        sampler=_Tasks(first, last, order.starts),
        num_workers=workers,
        pin_memory=device.type == "cuda",
        timeout=PATIENCE if workers else 0,
        generator=torch.Generator(),  # it draws a seed, which must not be a global one
        worker_init_fn=_begin,
    )
    move = Transfer(device)
    try:
        for found in loader:
            if isinstance(found, DcliError):
                raise found
            x0, rows, *values = move(found.x0, found.rows, *found.cond.values())
            yield MicroBatch(x0, dict(zip(found.cond, values, strict=True)), rows)
    except RuntimeError as error:
        if "DataLoader" not in str(error):
            raise
        reason = str(error).splitlines()[0]
        hint = "likely out of RAM or of /dev/shm: try trainer.workers=0"
        raise WorkerError(f"dataset: a loader worker died: {reason}", hint) from error


def _begin(worker: int) -> None:
    """Let a worker end without a word or a trace when the process it serves is gone.

    That process says why. The thread that hands over memory would print a traceback,
    and could make its folder for sockets when the worker has already tidied up.
    """
    get_temp_dir()
    told = sys.excepthook

    def hook(
        kind: type[BaseException], error: BaseException, at: TracebackType | None
    ) -> None:
        if not isinstance(error, ConnectionError | EOFError):
            told(kind, error, at)

    sys.excepthook = hook


class _Tasks(torch.utils.data.Sampler[_Task]):
    def __init__(self, first: int, last: int, starts: range) -> None:
        self.first, self.last, self.starts = first, last, starts

    def __iter__(self) -> Iterator[_Task]:
        steps = range(self.first, self.last)
        return (_Task(step, row) for step in steps for row in self.starts)


def inspect(found: MicroBatch, spec: Spec) -> None:
    """Refuse a micro-batch that is not what the `Spec` promises (`DataError`)."""
    x0, cond, _ = found
    if x0.shape[1:] != spec.shape:
        _refuse(f"samples have shape {tuple(x0.shape[1:])}, expected {spec.shape}")
    low, high = x0.min().item(), x0.max().item()
    seen = f"values from {low:g} to {high:g}"
    if spec.kind == "tokens":
        if x0.dtype != torch.int64 or low < 0 or high >= spec.vocab:
            _refuse(f"{x0.dtype} {seen}, expected int64 tokens 0 .. {spec.vocab - 1}")
    elif x0.dtype != torch.float32:
        _refuse(f"values are {x0.dtype}, expected torch.float32")
    elif not bool(x0.isfinite().all()):
        _refuse("there are NaN or infinite values")
    elif len(spec.shape) == 3 and max(-low, high) > 1 + TOLERANCE:
        _refuse(f"{seen}, expected images in [-1, 1]")
    label = cond.get("label")
    if spec.classes and label is None:
        _refuse(f"no labels, expected {spec.classes} classes")
    if label is not None:
        wrong = label[(label < -1) | (label >= spec.classes)]
        if len(wrong):
            classes = f"classes 0 .. {spec.classes - 1}, or -1 for none"
            _refuse(f"label {int(wrong[0])}, expected {classes}")


def _refuse(what: str) -> None:
    hint = "`batch` of the data set must return what its `spec` says"
    raise DataError(f"dataset: {what}", hint, "DATA-RANGE")


def prepare_like(data: Dataset, spec: Spec) -> None:
    """Read the data of a trained model; others are a `ConfigError`."""
    data.prepare()
    if data.spec.plain() != spec.plain():
        shapes = data.spec.shape, spec.shape
        message = f"dataset: its samples are {shapes[0]}, the model's {shapes[1]}"
        raise ConfigError(message, "take data like those of the training")


def once(
    data: Dataset,
    first: int,
    last: int,
    batch: int,
    rng: Rng,
    device: torch.device,
    order: int | None = None,
) -> Iterator[tuple[Tensor, dict[str, Tensor], Rng]]:
    """Elements first .. last - 1 of a fixed random order, with an `Rng` row for each.

    The order follows from the seed `order` alone, by default that of `rng`; `last` may
    lie beyond the data.
    """
    last = min(last, len(data))
    for begin in range(first, last, batch):
        place = torch.arange(begin, min(begin + batch, last))
        rows = shuffled(place, len(data), rng.seed if order is None else order)
        x0, cond = data.batch(rows, rng.of(rows).child("augment"))
        cond = {name: value.to(device) for name, value in cond.items()}
        yield x0.to(device), cond, rng.of(rows.to(device))
