"""`dcli doctor`: this machine, and which promises about equal bits hold on it."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffusion_cli import checkpoint, config, environment
from diffusion_cli import device as devices
from diffusion_cli.errors import ConfigError, EnvironmentFault

Rows = dict[str, Any]
NEAR = 1e-5  # how far a sample may move with the batch, in float32
_SIZE = 384  # rows of the matrices that are timed
_TINY: Rows = {
    "seed": 3,
    "dataset": {"name": "toy2d", "size": 100},
    "process": {"name": "gaussian", "schedule": {"name": "linear"}},
    "parametrisation": {"name": "eps"},
    "objective": {
        "name": "denoise",
        "weight": {"name": "simple"},
        "time": {"name": "uniform"},
    },
    "coupling": {"name": "independent"},
    "guidance": None,
    "sampler": {"name": "ancestral", "steps": 4, "grid": {"name": "uniform"}},
    "network": {"name": "mlp", "width": 16, "depth": 1, "dropout": 0.2},
    "optimizer": {"name": "adamw"},
    "every": {"log": 2, "save": 2, "preview": 0},
}


def run(settings: Rows, overrides: list[str]) -> None:
    """Print what is found; an `EnvironmentFault` at the end if something is wrong."""
    if strange := [word for word in overrides if word != "--json"]:
        raise ConfigError(f"doctor: takes no {strange[0]}", "dcli doctor --json")
    wrong: list[str] = []
    found: Rows = {"versions": environment.versions(), "torchvision": _abi(wrong)}
    device = devices.choose("auto")
    found |= {"device": environment.machine(device), "speed": _speed(device)}
    found |= {"folders": _folders(wrong), "data": _data(), "extras": _extras()}
    found["promises"] = _promises(device, wrong)
    print(json.dumps(found, indent=1) if overrides else _text(found))
    if wrong:
        message = "doctor: " + "; ".join(wrong)
        raise EnvironmentFault(message, "pip install -U torch torchvision", "DOCTOR")


def _abi(wrong: list[str]) -> str:
    """Whether torchvision was built for this torch."""
    try:
        importlib.import_module("torchvision.ops")
        torch.ops.torchvision.nms  # noqa: B018  # missing in a build for another torch
    except (ImportError, AttributeError, RuntimeError) as error:
        wrong.append(
            f"torchvision does not go with torch: {str(error).splitlines()[0]}"
        )
        return "does not go with torch"
    return "goes with torch"


def _speed(device: torch.device) -> Rows:
    """Billions of multiplications a second, by precision, and what `auto` takes."""
    rates: Rows = {"auto": devices.precision(device, "auto")}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        x = torch.ones(_SIZE, _SIZE, dtype=dtype, device=device)
        best = min(_seconds(x) for _ in range(5))
        rates[f"{name}_gflops"] = round(2 * _SIZE**3 / best / 1e9, 1)
    return rates


def _seconds(x: torch.Tensor) -> float:
    begun = time.perf_counter()
    (x @ x).sum().item()
    return time.perf_counter() - begun


def _folders(wrong: list[str]) -> Rows:
    """Where commands write: free space, and whether they may."""
    places = {
        "runs": "runs",
        "DCLI_DATA": os.environ.get("DCLI_DATA", "data"),
        "DCLI_CACHE": os.environ.get("DCLI_CACHE", "~/.cache/dcli"),
        "shared memory": "/dev/shm",
    }
    rows: Rows = {}
    for name, text in places.items():
        path = Path(text).expanduser()
        there = next(
            p for p in (path.absolute(), *path.absolute().parents) if p.exists()
        )
        may = os.access(there, os.W_OK)
        free = round(shutil.disk_usage(there).free / 2**30, 1)
        rows[name] = {"path": str(path), "free_gib": free, "writable": may}
        if name == "runs" and not may:
            wrong.append(f"{path}: no run can be written here")
    return rows


def _data() -> Rows:
    """Which published data are here, so that they need no network."""
    root = Path(os.environ.get("DCLI_DATA", "data"))
    known = {
        "mnist": "MNIST/raw",
        "fashion_mnist": "FashionMNIST/raw",
        "cifar10": "cifar-10-python.tar.gz",
    }
    here = {name: (root / place).exists() for name, place in known.items()}
    return {name: "here" if there else "not here" for name, there in here.items()}


def _extras() -> Rows:
    """Optional packages: their version, or what to type."""
    found: Rows = {}
    for line in metadata.requires("diffusion-cli") or ():
        match = re.match(r"([\w.-]+).*extra == ['\"](\w+)['\"]", line)
        if match is None or match[2] in ("all", "dev"):
            continue
        try:
            found[match[1]] = metadata.version(match[1])
        except metadata.PackageNotFoundError:
            found[match[1]] = f"pip install 'diffusion-cli[{match[2]}]'"
    return found


def _promises(device: torch.device, wrong: list[str]) -> Rows:
    """R0 to R5 of docs/reproducibility.md, tried with a tiny model."""
    with tempfile.TemporaryDirectory(prefix="dcli-doctor-") as name, _silent():
        folder = Path(name)
        whole = _train(folder / "whole", device)
        torch.manual_seed(1)  # nobody may read the global generator
        exact = {"twice": whole == _train(folder / "twice", device)}
        _train(folder / "parts", device, steps=3)
        exact["resumed"] = whole == _train(folder / "parts", device)
        many, few, wide = (
            _samples(folder / "whole", device, n, batch)
            for n, batch in ((8, 4), (3, 4), (8, 8))
        )
        exact["any n"] = bool((many[:3] == few).all())
    gap = float(np.abs(many - wide).max())
    near = gap <= NEAR
    cpu = device.type == "cpu"
    trained = exact["twice"] and exact["resumed"]
    inputs = exact["twice"]
    rows = {
        "R0": ("inputs are functions of (seed, step, sample)", _told(inputs)),
        "R1": ("trained twice or resumed: equal bits", _told(trained) if cpu else "no"),
        "R2": (
            "the same with trainer.deterministic=true",
            "not tried: no CUDA device" if cpu else _told(trained),
        ),
        "R3": ("other numbers of processes: equal inputs", "not tried"),
        "R4": ("a sample does not depend on n", _told(exact["any n"]) if cpu else "no"),
        "R5": (f"another batch: within {NEAR:g}", f"{_told(near)}: {gap:.1e}"),
    }
    for key, (what, told) in rows.items():
        if told.startswith("fails"):
            wrong.append(f"{key} fails: {what}")
    return {key: {"promise": what, "here": told} for key, (what, told) in rows.items()}


def _told(holds: bool) -> str:
    return "holds" if holds else "fails"


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    nobody = io.StringIO()
    with contextlib.redirect_stdout(nobody), contextlib.redirect_stderr(nobody):
        yield


def _train(folder: Path, device: torch.device, steps: int = 6) -> dict[str, str]:
    """Train, or go on; the hashes of what was learnt."""
    from diffusion_cli.commands import train

    trainer = {"steps": steps, "batch": 8, "ema": [4.0], "workers": 0}
    trainer |= {"precision": "fp32", "deterministic": device.type == "cuda"}
    own = {"trainer": trainer, "out": str(folder), "device": str(device)}
    train.run(config.check(_TINY | own), [])
    files = checkpoint.load(folder).files
    return {name: entry["sha256"] for name, entry in files.items()}


def _samples(run: Path, device: torch.device, n: int, batch: int) -> Any:
    from diffusion_cli.commands import sample

    out = run / f"{n}-{batch}"
    asked: Rows = {"ckpt": str(run), "n": n, "batch": batch, "format": "npz"}
    asked |= {"out": str(out), "device": str(device), "sampler": None}
    sample.run(config.check({**asked, "guidance": None}, "sample"), [])
    return np.load(out / "samples.npz", allow_pickle=False)["samples"]


def _text(found: Rows) -> str:
    """For reading: a block for each part, a line for each thing."""
    lines: list[str] = []
    for part, rows in found.items():
        if not isinstance(rows, dict):
            lines.append(f"{part:<14} {rows}")
            continue
        lines.append(part)
        for name, value in rows.items():
            if part == "promises":
                value = f"{value['promise']:<46} {value['here']}"
            elif isinstance(value, dict):
                free = f"{value['free_gib']} GiB free"
                may = "" if value["writable"] else ", read-only"
                value = f"{value['path']}, {free}{may}"
            lines.append(f"  {name:<16} {value}")
    return "\n".join(lines)
