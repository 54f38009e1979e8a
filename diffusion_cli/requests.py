"""The keys of the verbs that ask something of a checkpoint; free of torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from diffusion_cli.settings import require

Format = Literal["png", "npz", "grid"]


def _either(steps: int | None, nfe: int | None) -> None:
    """Raise `ValueError` if both are given."""
    if steps is not None and nfe is not None:
        raise ValueError("nfe: give steps= or nfe=, not both")


@dataclass(frozen=True)
class SampleSettings:
    """The keys of `sample.yaml`.

    Args:
        ckpt: A run or checkpoint folder, or the unique beginning of a run's name.
        n: Number of samples.
        batch: Samples per chunk; only the last bits of a sample depend on it.
        steps: Steps of the sampler; null leaves the sampler's own.
        nfe: Denoiser calls instead of steps: as many steps as fit.
        label: Class of every sample: an index or a name, a list to cycle through, -1
            for no class; null draws one per sample.
        seed: Seed of the samples, not of the run.
        weights: `ema`, `ema-<half-life>` or `raw`.
        format: What to write: one file per sample, one array, one picture of all.
        trajectory: A film or a strip of the states between prior and data.
        encode: Samples to run to t = 1 along the probability-flow ODE, a file or a
            folder; what is drawn starts there. `n` is then their number.
        interpolate: Two seeds or more: the n samples lead from the first sample of one
            to that of the next. With `encode`, numbers of given samples instead.
        prompt: A text with `_` for open places; its other tokens stay as they are.
        restore: Samples to spoil up to t = severity; what is drawn starts there.
        severity: Time at which restoring starts, the nearest that the process knows.
        degraded: What `restore` names is spoilt already.
        out: Folder to write to; null is a folder in the run, named by what was asked.
        device: `auto`, `cpu`, `cuda`, `cuda:1`.
        devices: Processes that draw, each with a device of its own.
        precision: Precision of the network alone.
        dtype: Precision of the solver's state.
        graphs: Replay the network as CUDA graphs where batches are small.
        plugins: Python files or modules to import first.
        tries: How often a job of a sweep is tried.
    """

    ckpt: str
    n: int = 64
    batch: int | None = None
    steps: int | None = None
    nfe: int | None = None
    label: int | str | list[int | str] | None = None
    seed: int = 0
    weights: str = "ema"
    format: list[Format] | Format = field(default_factory=lambda: ["png", "grid"])
    trajectory: Literal["gif", "strip"] | None = None
    encode: str | None = None
    interpolate: list[int] | None = None
    prompt: str | None = None
    restore: str | None = None
    severity: float = 0.5
    degraded: bool = False
    out: str | None = None
    device: str = "auto"
    devices: int = 1
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    dtype: Literal["float32", "float64"] = "float32"
    graphs: bool = True
    plugins: list[str] = field(default_factory=list)
    tries: int = 3

    def __post_init__(self) -> None:
        """Check the ranges."""
        require(self.n >= 1, "n", self.n, ">= 1")
        require(self.devices >= 1, "devices", self.devices, ">= 1")
        require(self.batch is None or self.batch >= 1, "batch", self.batch, ">= 1")
        require(self.steps is None or self.steps >= 1, "steps", self.steps, ">= 1")
        require(self.nfe is None or self.nfe >= 1, "nfe", self.nfe, ">= 1")
        _either(self.steps, self.nfe)
        require(0 <= self.seed < 2**63, "seed", self.seed, "in 0 .. 2^63 - 1")
        require(self.tries >= 1, "tries", self.tries, ">= 1")
        require(bool(self.format), "format", self.format, "png, npz or grid")
        require(0 < self.severity <= 1, "severity", self.severity, "in (0, 1]")
        for key in ("encode", "restore", "out"):
            path = getattr(self, key)
            require(path != "", key, path, "a path")
        both = self.encode is not None and self.restore is not None
        require(not both, "restore", self.restore, "given without encode")
        for key in ("severity", "degraded"):
            own, default = getattr(self, key), getattr(type(self), key)
            alone = own != default and self.restore is None
            require(not alone, key, own, "given with restore")
        if self.interpolate is not None:
            ends, others = self.interpolate, (self.restore, self.prompt)
            both = any(other is not None for other in others)
            require(not both, "interpolate", ends, "given without restore and prompt")
            require(len(ends) >= 2, "interpolate", ends, "two seeds or more")
            sound = all(0 <= end < 2**63 for end in ends)
            require(sound, "interpolate", ends, "in 0 .. 2^63 - 1")
            require(self.n >= len(ends), "n", self.n, f">= {len(ends)}, the seeds")


@dataclass(frozen=True)
class EvalSettings:
    """The keys of `eval.yaml`.

    Args:
        ckpt: A run or checkpoint folder, or the unique beginning of a run's name.
        n: Samples of every metric; null leaves each metric's own number.
        seeds: How often the samples are drawn, from `seed` on; null leaves each
            metric's own number.
        batch: Samples per chunk.
        steps: Steps of the sampler; null leaves the sampler's own.
        nfe: Denoiser calls instead of steps: as many steps as fit.
        label: Class of every sample, as for `dcli sample`.
        seed: Seed of samples, noise and probes, not of the run.
        weights: `ema`, `ema-<half-life>` or `raw`.
        json: Print one line of JSON instead of a table.
        device: `auto`, `cpu`, `cuda`, `cuda:1`.
        devices: Processes that draw and measure, each with a device of its own.
        precision: Precision of the network alone.
        dtype: Precision of the sampler's state.
        graphs: Replay the network as CUDA graphs where batches are small.
        cache: Where features of data, classifiers and weights are kept for all runs.
        plugins: Python files or modules to import first.
        tries: How often a job of a sweep is tried.
    """

    ckpt: str
    n: int | None = None
    seeds: int | None = None
    batch: int = 256
    steps: int | None = None
    nfe: int | None = None
    label: int | str | list[int | str] | None = None
    seed: int = 0
    weights: str = "ema"
    json: bool = False
    device: str = "auto"
    devices: int = 1
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    dtype: Literal["float32", "float64"] = "float32"
    graphs: bool = True
    cache: str = "~/.cache/dcli"
    plugins: list[str] = field(default_factory=list)
    tries: int = 3

    def __post_init__(self) -> None:
        """Check the ranges."""
        require(self.n is None or self.n >= 2, "n", self.n, ">= 2 or null")
        require(
            self.seeds is None or self.seeds >= 1, "seeds", self.seeds, ">= 1 or null"
        )
        require(self.devices >= 1, "devices", self.devices, ">= 1")
        require(self.batch >= 1, "batch", self.batch, ">= 1")
        require(self.steps is None or self.steps >= 1, "steps", self.steps, ">= 1")
        require(self.nfe is None or self.nfe >= 1, "nfe", self.nfe, ">= 1")
        _either(self.steps, self.nfe)
        require(0 <= self.seed < 2**63, "seed", self.seed, "in 0 .. 2^63 - 1")
        require(self.tries >= 1, "tries", self.tries, ">= 1")


@dataclass(frozen=True)
class FitSettings:
    """The keys of `fit.yaml`.

    Args:
        ckpt: A run or checkpoint folder, or the unique beginning of a run's name.
        variance: What to find: the optimal reverse variance, one scalar per time.
        n: Number of data used.
        times: Number of times, even in log(sigma / alpha); null: all that a table has.
        batch: Data per pass.
        seed: Which data, and which noise.
        weights: `ema`, `ema-<half-life>` or `raw`.
        device: `auto`, `cpu`, `cuda`, `cuda:1`.
        precision: Precision of the network alone.
        plugins: Python files or modules to import first.
    """

    ckpt: str
    variance: Literal["analytic"] = "analytic"
    n: int = 10_000
    times: int | None = 100
    batch: int = 256
    seed: int = 0
    weights: str = "ema"
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    plugins: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Check the ranges."""
        require(self.n >= 2, "n", self.n, ">= 2")
        require(self.times is None or self.times >= 2, "times", self.times, ">= 2")
        require(self.batch >= 1, "batch", self.batch, ">= 1")
        require(0 <= self.seed < 2**63, "seed", self.seed, "in 0 .. 2^63 - 1")


@dataclass(frozen=True)
class TuneSettings:
    """The keys of `tune.yaml`.

    Args:
        ckpt: A run or checkpoint folder, or the unique beginning of a run's name.
        steps: Steps of the sampler; null leaves the sampler's own.
        nfe: Denoiser calls instead of steps: as many steps as fit.
        n: Trajectories; the grid is fitted to one half and judged by the other.
        batch: Trajectories at once.
        rounds: How often every knot of the grid is moved, each time half as far.
        seed: Which trajectories.
        weights: `ema`, `ema-<half-life>` or `raw`.
        device: `auto`, `cpu`, `cuda`, `cuda:1`.
        precision: Precision of the network alone.
        plugins: Python files or modules to import first.
    """

    ckpt: str
    steps: int | None = None
    nfe: int | None = None
    n: int = 128
    batch: int = 64
    rounds: int = 4
    seed: int = 0
    weights: str = "ema"
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    plugins: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Check the ranges."""
        require(self.steps is None or self.steps >= 2, "steps", self.steps, ">= 2")
        require(self.nfe is None or self.nfe >= 2, "nfe", self.nfe, ">= 2")
        _either(self.steps, self.nfe)
        require(self.n >= 4, "n", self.n, ">= 4")
        require(self.batch >= 1, "batch", self.batch, ">= 1")
        require(1 <= self.rounds <= 50, "rounds", self.rounds, "1 to 50")
        require(0 <= self.seed < 2**63, "seed", self.seed, "in 0 .. 2^63 - 1")
