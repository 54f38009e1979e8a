"""Several processes that work as one, by torch.distributed."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import FileStore, PrefixStore, Store, rendezvous  # type: ignore[attr-defined]

from diffusion_cli import failpoints
from diffusion_cli.errors import ConfigError, EnvironmentFault, WorkerError
from diffusion_cli.ranks import Standing, standing
from diffusion_cli.world import Alone, World

PATIENCE = 20.0  # seconds that a rank may be late for a step
_START = timedelta(minutes=5)  # for all ranks to be there
_LONG = timedelta(days=1)  # for what one rank does while the others wait
T = TypeVar("T")


class Bereft(WorkerError):
    """Another rank is gone; its own error says why."""

    bereft = True


class Ranks(World):
    """Several processes, by torch.distributed: gloo on hosts, NCCL between GPUs.

    Hosts meet with `PATIENCE`, so that a rank that hangs is found; what takes its time
    on one rank happens inside `once` and `led`, where the others wait for long.

    Args:
        place: Which of them this one is.
    """

    def __init__(self, place: Standing) -> None:
        self.rank, self.size, self.local = place
        self.patience = float(os.environ.get("DCLI_PATIENCE", PATIENCE))
        self._store = _store(place)
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        with self._meeting("start"):
            dist.init_process_group(
                backend,
                store=PrefixStore("dcli", self._store),
                rank=self.rank,
                world_size=self.size,
                timeout=_LONG,
            )
            limit = timedelta(seconds=self.patience)
            self._short = dist.new_group(backend="gloo", timeout=limit)
        self._met = False  # compiling may take ranks unequal times
        if os.environ.get("DCLI_FAULT_RANK", str(self.rank)) != str(self.rank):
            failpoints.arm(None)

    def gather(self, x: Tensor) -> Tensor:
        whole = x.new_empty((self.size * len(x), *x.shape[1:]))
        with self._meeting("gather"):
            parts = list(whole.chunk(self.size))
            dist.all_gather(parts, x.contiguous(), group=self._group(x))
        return torch.cat(parts)

    def pool(self, parts: Sequence[Tensor], batch: int) -> Tensor:
        flat = [part.reshape(len(part), -1).double().cpu() for part in parts]
        self.meet()  # one batch more is no rank that hangs
        most = self.agree(len(flat))
        width = self.agree(max((part.shape[1] for part in flat), default=0))
        mine = torch.full((most, batch, width), torch.nan, dtype=torch.float64)
        for place, part in zip(mine, flat, strict=False):
            place[: len(part)] = part
        sizes = torch.zeros(most, dtype=torch.int64)
        sizes[: len(flat)] = torch.tensor([len(part) for part in flat])
        dealt = (self.gather(mine), self.gather(sizes))
        rows, counts = (
            x.view(self.size, most, *x.shape[1:]).transpose(0, 1).flatten(0, 1)
            for x in dealt
        )
        kept = zip(rows, counts.tolist(), strict=True)
        return torch.cat([row[:count] for row, count in kept])

    def sum(self, tensors: Sequence[Tensor]) -> None:
        if not tensors:
            return
        failpoints.hit("dist.collective")
        whole = torch.cat([tensor.flatten() for tensor in tensors])
        with self._meeting("sum"):
            dist.all_reduce(whole, group=self._group(whole))
        parts = torch.split(whole, [tensor.numel() for tensor in tensors])
        shaped = [p.view(t.shape) for p, t in zip(parts, tensors, strict=True)]
        torch._foreach_copy_(list(tensors), shaped)
        self._met = True

    def copy(self, tensors: Sequence[Tensor]) -> None:
        with self._meeting("copy"):
            for tensor in tensors:
                whole = tensor.contiguous()
                dist.broadcast(whole, src=0)
                tensor.copy_(whole)

    def agree(self, wish: int) -> int:
        wishes = torch.tensor(wish)
        with self._meeting("agree"):
            dist.all_reduce(wishes, dist.ReduceOp.MAX, group=self._group(wishes))
        return int(wishes)

    def once(self, work: Callable[[], object]) -> None:
        if self.rank == 0:
            work()
        self.meet()

    def led(self, work: Callable[[], T]) -> T:
        if self.rank:
            self.meet()
            return work()
        done = work()
        self.meet()
        return done

    @torch.no_grad()
    def same(self, tensors: Mapping[str, Tensor]) -> None:
        sums = torch.stack([tensor.double().sum() for tensor in tensors.values()])
        every = self.gather(sums.cpu()[None])
        apart = (every != every[:1]) & ~(every.isnan() & every[:1].isnan())
        if bool(apart.any()):
            rank, which = apart.nonzero()[0].tolist()
            name = list(tensors)[which]
            message = f"trainer: `{name}` of rank {rank} is not that of rank 0"
            raise WorkerError(message, "the newest checkpoint is sound", "DIVERGED")

    def leave(self) -> None:
        self.meet()
        dist.destroy_process_group()

    def _group(self, x: Tensor) -> Any:
        """Hosts meet in the short group, devices and the first of all in the long."""
        return self._short if self._met and x.device.type == "cpu" else None

    def meet(self) -> None:
        with self._meeting("wait"):
            dist.all_reduce(torch.zeros(1))

    @contextmanager
    def _meeting(self, what: str) -> Iterator[None]:
        """Turn what torch says of lost ranks into a `WorkerError`."""
        begun = time.monotonic()
        try:
            yield
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            if "Duplicate GPU" in reason:
                text = "devices: two processes share a GPU; NCCL wants one for each"
                raise EnvironmentFault(text, "fewer devices", "NO-DEVICE") from error
            if time.monotonic() - begun < self.patience / 2:
                text = f"rank {self.rank}: another rank ended during `{what}`: {reason}"
                raise Bereft(text, "see its own error", "RANK") from error
            missing = ", ".join(map(str, self._missing())) or "?"
            seconds = f"{time.monotonic() - begun:.0f} s"
            message = f"rank {missing} hangs: not there for `{what}` after {seconds}"
            raise WorkerError(message, "look at its stack: py-spy", "HANG") from error

    def _missing(self) -> list[int]:
        """Who does not answer: those that wait in vain say so in the store."""
        try:
            self._store.set(f"waits/{self.rank}", "")
            time.sleep(1)
            every = range(self.size)
            return [r for r in every if not self._store.check([f"waits/{r}"])]
        except RuntimeError:
            return [0]  # who keeps the store


def join(devices: int) -> World:
    """The world that this process was started in; alone if in none."""
    place = standing()
    if place is None:
        return Alone()
    if devices not in (1, place.size):
        message = (
            f"devices: {devices} asked for, but {place.size} processes were started"
        )
        raise ConfigError(message, "leave devices out under torchrun and srun")
    return Ranks(place)


def _store(place: Standing) -> Store:
    """Where ranks find each other: our own file, torchrun's, or SLURM's first node."""
    if path := os.environ.get("DCLI_STORE"):
        return FileStore(path, place.size)
    if "MASTER_ADDR" not in os.environ:
        os.environ["MASTER_ADDR"] = _first_node()
        job = int(os.environ.get("SLURM_JOB_ID", 0))
        os.environ["MASTER_PORT"] = str(20_000 + job % 20_000)
    os.environ |= {"RANK": str(place.rank), "WORLD_SIZE": str(place.size)}
    try:
        store, _, _ = next(rendezvous("env://", timeout=_START))
    except (RuntimeError, ValueError) as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ.get('MASTER_PORT')}"
        message = f"distributed: rank {place.rank} cannot reach {where}: {error}"
        raise EnvironmentFault(message, "MASTER_PORT=<a free port>", "RANK") from error
    return cast(Store, store)


def _first_node() -> str:
    """The address of the first machine of a SLURM step."""
    names = _scontrol("hostnames", os.environ.get("SLURM_STEP_NODELIST", ""))
    name = names.split()[0]
    address = re.search(r"NodeAddr=(\S+)", _scontrol("node", name))
    return address[1] if address else name


def _scontrol(*words: str) -> str:
    command = ["scontrol", "show", *words]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        message = f"distributed: `{' '.join(command)}` failed: {error}"
        raise EnvironmentFault(message, "MASTER_ADDR=<the first node>") from error
    return told.stdout
