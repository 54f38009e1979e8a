"""Checkpoints of a tiny network, and ways to spoil them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from diffusion_cli import checkpoint
from diffusion_cli.core import Spec

SPEC = Spec((1, 8, 8), classes=10, names=("zero",), codec={"levels": 17})
ABOUT = {"config": {"seed": 0}, "data": SPEC.plain()}


def net(width: int = 4, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, width), nn.Linear(width, 2))


def save(folder: Path, step: int = 1, seed: int = 0) -> Path:
    module, average = net(seed=seed), net(seed=seed + 1)
    tensors = {"model": module.state_dict(), "ema-5": average.state_dict()}
    return checkpoint.save(folder, step, tensors, {"step": step}, ABOUT)


def spoil(path: Path, how: str) -> None:
    data = path.read_bytes()
    flipped = data[:-1] + bytes([data[-1] ^ 1])
    kinds = {"empty": b"", "byte": data[:1], "half": data[: len(data) // 2]}
    path.write_bytes({**kinds, "flipped": flipped}[how])
