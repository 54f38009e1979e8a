"""Norm and silu before a convolution of the U-Net, forward and backward in bf16."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from statistics import median

import torch
from chip import Bench, Once, Row, in_turn, milli, ready, spread
from duel import ratios
from torch import nn

from diffusion_cli.networks.blocks import group_norm, norm_silu
from items.ceilings import CONVOLUTIONS

OWN = "dcli"


def measure(bench: Bench) -> Iterator[Row]:
    """Both ways at each size, in turn."""
    for channels, pixels in CONVOLUTIONS:
        makers: dict[str, Callable[[], Once]] = {
            OWN: partial(passes, bench, norm_silu(channels), pixels),
            "group_norm and silu of torch": partial(
                passes, bench, nn.Sequential(group_norm(channels), nn.SiLU()), pixels
            ),
        }
        sides, rows = ready(bench, makers, 15)
        times, rounds = (2, 2) if bench.small else (20, 7)
        seen = in_turn(bench, sides, times, rounds, bench.until - 1)
        for name in makers:
            row = {"side": f"{name}, {channels} at {pixels} pixels"} | rows[name]
            if name in seen:
                row |= {"ms": milli(median(seen[name]))}
                row |= {"spread %": 100 * spread(seen[name])}
                if OWN in seen:
                    row["time, dcli = 1"] = ratios(seen[OWN], seen[name])["median"]
            yield row


def passes(bench: Bench, layer: nn.Module, pixels: int) -> Once:
    """There and back, channels last, under autocast as the network is."""
    layer.to(bench.device)
    weights = list(layer.parameters())
    size = (2 if bench.small else 512, len(weights[0]), pixels, pixels)
    x = torch.randn(size, device=bench.device, dtype=torch.bfloat16)
    x = x.to(memory_format=torch.channels_last).requires_grad_()
    slope = torch.randn_like(x)

    def once() -> None:
        with torch.autocast(bench.device.type, torch.bfloat16):
            y = layer(x).to(slope.dtype)  # as the convolution reads it
        torch.autograd.grad(y, (x, *weights), slope)

    return once
