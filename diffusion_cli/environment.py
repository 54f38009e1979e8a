"""What a run ran on: versions, machine, git state. Nothing secret."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import diffusion_cli
from diffusion_cli import device as devices

_PACKAGES = ("torch", "torchvision", "numpy", "safetensors", "hydra-core", "omegaconf")
_LARGEST_DIFF = 1 << 20
_PATIENCE = 10  # seconds


def versions() -> dict[str, str]:
    """Of this package, of Python and of what decides numbers."""
    found = {"dcli": diffusion_cli.__version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def machine(device: torch.device) -> dict[str, Any]:
    """The device and what else decides the last bits."""
    return {
        "device": str(device),
        "name": devices.label(device),
        "platform": platform.platform(),
        "processor": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda if device.type == "cuda" else None,
    }


def git() -> dict[str, Any] | None:
    """Commit of the source tree, whether it is dirty, and the changes; None without."""
    source = Path(diffusion_cli.__file__).parent.parent
    place = source if (source / ".git").exists() else Path.cwd()
    commit = _git(place, "rev-parse", "HEAD")
    if commit is None:
        return None
    changes = _git(place, "diff", "HEAD") or ""
    small = len(changes) <= _LARGEST_DIFF
    return {
        "commit": commit.strip(),
        "dirty": bool(changes),
        "diff": changes if small else "(larger than 1 MB)",
    }


def _git(place: Path, *words: str) -> str | None:
    command = ["git", "-C", str(place), *words]
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=_PATIENCE, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="replace")
