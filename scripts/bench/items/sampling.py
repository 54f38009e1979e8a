"""50 steps of DDIM with the CIFAR-10 network: `dcli sample` beside DDIMPipeline."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from typing import Any

import torch
from chip import Bench, Once, Row, free, in_turn, milli, ready, reason, spread, tuned
from duel import ratios
from recipe import Config, recipe
from subjects.others_training import diffusers_network
from subjects.own_training import IMAGE
from torch import Tensor

from diffusion_cli import assemble
from diffusion_cli import device as devices
from diffusion_cli.denoiser import Model
from diffusion_cli.graphs import recorder, replay
from diffusion_cli.rng import Rng

STEPS, PROFILED = 50, 10
BATCHES = (1, 16, 256)
OWN, EAGER = "dcli", "dcli, graphs=false"
Way = Callable[[int, int], Once]  # by batch and steps


def measure(bench: Bench) -> Iterator[Row]:
    """Latency, rate, and how long the device has nothing to do in a step."""
    makers: dict[str, Callable[[], Way]] = {
        OWN: partial(own, bench, graphs=True),
        EAGER: partial(own, bench, graphs=False),
        "DDIMPipeline, fp32": partial(other, bench, fast=False),
        "DDIMPipeline, bf16, channels_last": partial(other, bench, fast=True),
    }
    ways: dict[str, Way] = {}
    for name, make in makers.items():
        try:
            ways[name] = make()
        except Exception as problem:  # whatever it is, the others go on
            yield {"side": name, "fault": reason(problem)}
    batches = (1, 2) if bench.small else BATCHES
    for number, batch in enumerate(batches):
        until = bench.until - bench.left() * (1 - 1 / (len(batches) - number))
        yield from at(bench, ways, batch, until)
        free(bench.device)


def at(bench: Bench, ways: dict[str, Way], batch: int, until: float) -> Iterator[Row]:
    """One batch."""
    steps = 5 if bench.small else STEPS
    makers = {name: partial(way, batch, steps) for name, way in ways.items()}
    sides, rows = ready(bench, makers, 30)
    seen = in_turn(bench, sides, 1, 2 if bench.small else 5, until - 3)
    for name, way in ways.items():
        row = {"side": name, "batch": batch} | rows[name]
        if name in seen:
            took = median(seen[name])
            row |= {"ms": milli(took), "img/s": batch / took}
            row |= {"spread %": 100 * spread(seen[name])}
            if OWN in seen:
                row["time, dcli = 1"] = ratios(seen[OWN], seen[name])["median"]
            if bench.device.type == "cuda":
                idle = took / steps - working(way(batch, PROFILED)) / PROFILED
                row["host gap, us a step"] = idle * 1e6
        yield row


def own(bench: Bench, graphs: bool) -> Way:
    """The loop of `dcli sample`, with the model as it rebuilds it."""
    values, device = recipe(bench.small), bench.device
    model = assemble.model(values, IMAGE).onto(device).eval().requires_grad_(False)
    model.around = devices.autocast(device, devices.precision(device, "auto"))
    record = recorder(device) if graphs else None
    if record is not None:
        replay([model.network], record)
    node = values["sampler"]
    return lambda batch, steps: tuned(drawing(model, node, batch, steps, device), True)


def drawing(
    model: Model, node: Config, batch: int, steps: int, device: torch.device
) -> Callable[[], Tensor]:
    """What draws the samples 0 .. batch - 1 of seed 0."""
    walk = assemble.sampler(node, model.process, steps)
    rng = Rng(0, torch.arange(batch, device=device)).child("sample")
    denoiser = model.given(rows=rng.rows)
    start = model.process.prior((batch, *IMAGE.shape), rng)

    def once() -> Tensor:
        for x in walk.trajectory(denoiser, start, rng):
            last = x
        return last

    return once


def other(bench: Bench, fast: bool) -> Way:
    """The pipeline of diffusers, as it is or as fast as settings of torch make it."""
    from diffusers import DDIMPipeline, DDIMScheduler

    network = diffusers_network(bench.small).to(bench.device).eval()
    if fast:
        network.to(memory_format=torch.channels_last)
    pipeline: Any = DDIMPipeline(network, DDIMScheduler())
    pipeline.set_progress_bar_config(disable=True)

    def drawn(batch: int, steps: int) -> None:
        with torch.autocast(bench.device.type, torch.bfloat16, enabled=fast):
            pipeline(batch_size=batch, num_inference_steps=steps, output_type="np")

    return lambda batch, steps: tuned(partial(drawn, batch, steps), fast)


def working(once: Once) -> float:
    """Seconds for which the device computes in a call."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    once()
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        once()
        torch.cuda.synchronize()
    kernels = [e for e in seen.events() if e.device_type is DeviceType.CUDA]
    return sum(kernel.time_range.elapsed_us() for kernel in kernels) / 1e6
