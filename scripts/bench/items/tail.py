"""The end of a training step alone: the optimiser, and the average of weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from typing import Any

import torch
from chip import Bench, Once, Row, in_turn, milli, ready, spread
from duel import ratios
from recipe import recipe
from subjects import own_training
from torch import Tensor

OWN = "dcli"
GAIN = 1e-4


def measure(bench: Bench) -> Iterator[Row]:
    """The ways that torch offers, and dcli's."""
    likes = [p.shape for p in own(bench)[1].model.parameters()]
    makers: dict[str, Callable[[], Once]] = {
        OWN: lambda: own_tail(bench),
        "a loop over all tensors": partial(
            plain, bench, likes, looped, foreach=False, fused=False
        ),
        "torch's foreach": partial(plain, bench, likes, at_once, foreach=True),
        "fused, average by foreach": partial(plain, bench, likes, at_once, fused=True),
        "the same in a CUDA graph": partial(graphed, bench, likes),
    }
    sides, rows = ready(bench, makers, 20)
    times, rounds = (2, 2) if bench.small else (50, 7)
    seen = in_turn(bench, sides, times, rounds, bench.until - 2)
    for name in makers:
        row = {"side": name} | rows[name]
        if name in seen:
            row |= {"ms": milli(median(seen[name]))}
            row |= {"spread %": 100 * spread(seen[name])}
            if OWN in seen:
                row["time, dcli = 1"] = ratios(seen[OWN], seen[name])["median"]
        yield row


def own(bench: Bench) -> tuple[Any, Any]:
    """Trainer and state of the recipe."""
    values = recipe(bench.small, batch=1)
    values["device"] = str(bench.device)
    return own_training.built(values)


def own_tail(bench: Bench) -> Once:
    """What dcli does after the gradients are there."""
    return own_training.closing(own(bench)[1])


def looped(averages: list[Tensor], weights: list[Tensor]) -> None:
    """The average as most scripts write it."""
    for average, weight in zip(averages, weights, strict=True):
        average.sub_(GAIN * (average - weight))


def at_once(averages: list[Tensor], weights: list[Tensor]) -> None:
    """The average in one operation for all tensors."""
    torch._foreach_lerp_(averages, weights, GAIN)


def plain(
    bench: Bench,
    likes: list[torch.Size],
    follow: Callable[[list[Tensor], list[Tensor]], None],
    **how: bool,
) -> Once:
    """Adam of torch and an average, on as many weights of the same shapes."""
    weights = [torch.randn(s, device=bench.device, requires_grad=True) for s in likes]
    for weight in weights:
        weight.grad = 1e-3 * torch.randn_like(weight)
    averages = [weight.detach().clone() for weight in weights]
    optimizer = torch.optim.Adam(weights, lr=2e-4, **how)

    @torch.no_grad()
    def once() -> None:
        optimizer.step()
        follow(averages, [weight.detach() for weight in weights])

    return once


def graphed(bench: Bench, likes: list[torch.Size]) -> Once:
    """The least that is possible: no launch by the host but one."""
    if bench.device.type != "cuda":
        raise NotImplementedError("needs a CUDA device")
    once = plain(bench, likes, at_once, fused=True, capturable=True)
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):  # the state of Adam has to be there before
        for _ in range(3):
            once()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        once()
    return graph.replay
