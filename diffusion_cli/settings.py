"""The keys that are not components: their names, types, defaults and ranges.

Free of torch, so that a wrong key is refused before torch is imported. The dataclasses
are the schema of `train.yaml` and `sample.yaml`; ranges are checked on construction.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


def require(holds: bool, key: str, value: object, allowed: str) -> None:
    """Raise `ValueError` naming the key, its value and the allowed range."""
    if not holds:
        raise ValueError(f"{key}: must be {allowed}, got {value!r}")


def seconds(limit: float | str | None) -> float:
    """A time budget in seconds from a number, `90s`, `30m`, `12h` or `HH:MM:SS`."""
    if limit is None:
        return math.inf
    if isinstance(limit, int | float):
        return float(limit)
    if match := re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd])", limit):
        return float(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]
    if re.fullmatch(r"\d+(:\d{1,2}){1,2}", limit):
        parts = [int(part) for part in limit.split(":")]
        return float(sum(part * 60**i for i, part in enumerate(reversed(parts))))
    raise ValueError(
        f"time_limit: must be seconds, `90s`, `30m` or `HH:MM:SS`, got {limit!r}"
    )


@dataclass(frozen=True)
class TrainerSettings:
    """`trainer.*`: how long, how large, how precisely.

    Args:
        steps: Optimiser steps of the whole run.
        batch: Samples per optimiser step, over all devices.
        micro_batch: Samples per forward pass; null means `batch`.
        devices: Number of devices of this machine.
        precision: `auto` is bf16 where the device computes it fast, else fp32.
        recompute: What the backward pass computes again to save memory.
        compile: Compile the network with `torch.compile`, in place.
        clip: Largest gradient norm; 0 turns clipping off.
        skip_nonfinite: How many steps may pass without an update because a loss or a
            gradient is not finite; the next one ends the run.
        time_limit: Save and stop after this time: seconds, `30m`, `12h`, `HH:MM:SS`.
        warmup: Steps over which the learning rate rises from 0.
        decay: How the learning rate falls after the warm-up.
        ema: Half-lives of the averaged weights, in steps; the first is sampled from.
        ema_ramp: A half-life is at most this fraction of the steps done so far.
        workers: Loader processes for data too large to live on the device.
        deterministic: Deterministic kernels on CUDA; the CPU always is.
    """

    steps: int = 200_000
    batch: int = 128
    micro_batch: int | None = None
    devices: int = 1
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    recompute: Literal["none", "norms", "blocks", "attention"] = "none"
    compile: bool = False
    clip: float = 1.0
    skip_nonfinite: int = 0
    time_limit: float | str | None = None
    warmup: int = 0
    decay: Literal["constant", "cosine", "linear", "inverse_sqrt"] = "constant"
    ema: tuple[float, ...] = (7000.0,)
    ema_ramp: float | None = 0.05
    workers: int = 2
    deterministic: bool = False

    def __post_init__(self) -> None:
        """Check every range; the first one that fails is a `ValueError`."""
        require(self.steps >= 1, "steps", self.steps, ">= 1")
        require(self.batch >= 1, "batch", self.batch, ">= 1")
        even = self.devices >= 1 and self.batch % self.devices == 0
        require(even, "devices", self.devices, f"a divisor of batch={self.batch}")
        micro = self.micro_batch
        if micro is not None:
            divides = micro >= 1 and self.share % micro == 0
            require(divides, "micro_batch", micro, f"a divisor of {self._shared}")
        require(self.clip >= 0, "clip", self.clip, ">= 0")
        skip = self.skip_nonfinite
        require(skip >= 0, "skip_nonfinite", skip, ">= 0")
        require(seconds(self.time_limit) > 0, "time_limit", self.time_limit, "> 0")
        require(self.warmup >= 0, "warmup", self.warmup, ">= 0")
        for half_life in self.ema:
            require(half_life > 0, "ema", half_life, "half-lives > 0 steps")
        ramp = self.ema_ramp
        require(ramp is None or ramp > 0, "ema_ramp", ramp, "> 0 or null")
        require(self.workers >= 0, "workers", self.workers, ">= 0")

    @property
    def share(self) -> int:
        """Samples per optimiser step and device."""
        return self.batch // self.devices

    @property
    def _shared(self) -> str:
        whole = f"batch={self.batch}"
        return whole if self.devices == 1 else f"{whole} / devices={self.devices}"


@dataclass(frozen=True)
class Every:
    """`every.*`: steps between logs, saves, previews, measurements; 0 turns one off."""

    log: int = 100
    save: int = 10_000
    preview: int = 5_000
    eval: int = 0

    def __post_init__(self) -> None:
        """Check the ranges."""
        require(self.log >= 1, "log", self.log, ">= 1")
        require(self.save >= 0, "save", self.save, ">= 0")
        require(self.preview >= 0, "preview", self.preview, ">= 0")
        require(self.eval >= 0, "eval", self.eval, ">= 0")


@dataclass(frozen=True)
class Evaluation:
    """`evaluation.*`: how `metric=` is measured at every multiple of `every.eval`.

    Args:
        n: Samples of every metric; null leaves each metric's own number.
        seeds: How often they are drawn; null leaves each metric's own number.
        batch: Samples per chunk.
        nfe: Denoiser calls per sample; null leaves the sampler's own steps.
        weights: `ema`, `ema-<half-life>` or `raw`.
        best: Keep the checkpoint whose first number is the best so far.
        patience: Measurements without a better one after which the run stops.
        cache: Where features and classifiers are kept for all runs.
    """

    n: int | None = None
    seeds: int | None = None
    batch: int = 256
    nfe: int | None = None
    weights: str = "ema"
    best: bool = True
    patience: int | None = None
    cache: str = "~/.cache/dcli"

    def __post_init__(self) -> None:
        """Check the ranges."""
        for key in ("n", "seeds", "nfe", "patience"):
            value, least = getattr(self, key), 2 if key == "n" else 1
            fits = value is None or value >= least
            require(fits, key, value, f">= {least} or null")
        require(self.batch >= 1, "batch", self.batch, ">= 1")


@dataclass(frozen=True)
class Keep:
    """`checkpoint.*`: which checkpoints stay.

    Args:
        keep: How many of the newest; 0 keeps all.
        keep_every: Keep every multiple of this step for good; 0 keeps none for good.
        on_full: When the disk is full: stop with exit 6, or wait until there is room.
    """

    keep: int = 2
    keep_every: int = 0
    on_full: Literal["stop", "wait"] = "stop"

    def __post_init__(self) -> None:
        """Check the ranges."""
        require(self.keep == 0 or self.keep >= 2, "keep", self.keep, "0 or >= 2")
        require(self.keep_every >= 0, "keep_every", self.keep_every, ">= 0")


@dataclass(frozen=True)
class RunSettings:
    """The top-level keys of `train.yaml` that are neither components nor groups.

    Args:
        seed: Everything random follows from it.
        name: Beginning of the run folder's name; null is the experiment's name.
        out: The run folder; null is `runs/<name>-<id>`.
        device: `auto`, `cpu`, `cuda`, `cuda:1`.
        init: A run to start from: its weights, by name.
        trainable: Glob over parameter names; the rest is frozen.
        fresh: Begin again although the folder holds checkpoints (they are set aside).
        plugins: Python files or modules to import first.
        tries: How often a job of a sweep is tried.
    """

    seed: int = 0
    name: str | None = None
    out: str | None = None
    device: str = "auto"
    init: str | None = None
    trainable: str | None = None
    fresh: bool = False
    plugins: list[str] = field(default_factory=list)
    tries: int = 3

    def __post_init__(self) -> None:
        """Check the ranges."""
        require(0 <= self.seed < 2**63, "seed", self.seed, "in 0 .. 2^63 - 1")
        require(self.tries >= 1, "tries", self.tries, ">= 1")
        plain = self.name is None or re.fullmatch(
            r"[A-Za-z0-9_]([A-Za-z0-9._-]*[A-Za-z0-9_-])?", self.name
        )
        require(bool(plain), "name", self.name, "letters, digits and `._-`")


def micro_batch(trainer: Mapping[str, Any]) -> int:
    """Samples in a forward pass of one process."""
    share: int = trainer["batch"] // max(1, trainer["devices"])
    return trainer["micro_batch"] or share
