"""Whether the fast steps learn the same as slow ones; else their speed is void."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from chip import Bench, Row, tune
from recipe import SHAPE, recipe
from subjects import own_training
from subjects.own_data import Noise
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion_cli import assemble, loading
from diffusion_cli.datasets import Dataset
from diffusion_cli.datasets.images import image_spec
from diffusion_cli.loading import MicroBatch
from diffusion_cli.rng import Rng
from items import photographs

STEPS, BATCH, ALLOWED = 300, 128, 0.01
REFERENCE = "reference, plain torch, fp32"
Losses = list[float]


def measure(bench: Bench) -> Iterator[Row]:
    """Mean losses of the same steps; no dropout, so that all numbers are given."""
    steps, batch = (24, 8) if bench.small else (STEPS, BATCH)
    data, about = images(bench)
    seen = {REFERENCE: reference(bench, data, steps, batch)}
    for precision in ("fp32", "bf16"):
        name = f"dcli, precision={precision}"
        seen[name] = own(bench, data, steps, batch, precision)
    part = steps // 3
    first, last = sum(seen[REFERENCE]), sum(seen[REFERENCE][-part:])
    for name, losses in seen.items():
        whole, end = sum(losses) / first - 1, sum(losses[-part:]) / last - 1
        yield {
            "side": f"{name}, {about}",
            "loss of the first": losses[0],
            f"loss of the last {part}": sum(losses[-part:]) / part,
            "% off": 100 * whole,
            "% off, last third": 100 * end,
            "equal": "yes" if max(abs(whole), abs(end)) <= ALLOWED else "NO",
        }


def images(bench: Bench) -> tuple[Dataset, str]:
    """Photographs if there are some, and what they are called."""
    try:
        node = photographs.node("test" if bench.small else "train")
        data, about = assemble.dataset({"dataset": node}), "CIFAR-10"
    except FileNotFoundError:
        data, about = Noise(2_000), "random images"
        data.spec = image_spec(SHAPE, ())
    data.prepare()
    return data, about


def values(bench: Bench, batch: int, precision: str) -> dict[str, Any]:
    """The recipe without dropout and warm-up: 300 steps see little of a long one."""
    found = recipe(bench.small, batch=batch, precision=precision, warmup=0)
    found["network"]["dropout"] = 0.0
    if bench.small:  # few steps that change much
        found["optimizer"]["lr"] = 2e-3
    return found | {"device": str(bench.device)}


def batches(
    bench: Bench, data: Dataset, steps: int, batch: int
) -> Iterator[Iterator[MicroBatch]]:
    """The same images in the same order for all."""
    return loading.batches(
        data,
        seed=0,
        first=0,
        last=steps,
        batch=batch,
        micro_batch=batch,
        device=bench.device,
        workers=0,
    )


def own(bench: Bench, data: Dataset, steps: int, batch: int, precision: str) -> Losses:
    """Mean losses of dcli's steps."""
    trainer, state = own_training.built(values(bench, batch, precision))
    tune(True)
    walk = trainer.run(state, batches(bench, data, steps, batch))
    return torch.stack([progress.losses.mean() for progress in walk]).tolist()


def reference(bench: Bench, data: Dataset, steps: int, batch: int) -> Losses:
    """The same steps as Ho et al. 2020 write them, algorithm 1: Adam, clipped at 1.

    Only the weights before the first step and the random numbers are dcli's.
    """
    tune(False)
    config = values(bench, batch, "fp32")
    network = assemble.model(config, own_training.IMAGE).network.to(bench.device)
    weights = list(network.train().parameters())
    optimizer = torch.optim.Adam(weights, lr=config["optimizer"]["lr"])
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64, device=bench.device)
    kept = (1 - betas).cumprod(0)  # alpha-bar of the paper
    losses: list[Tensor] = []
    for step, whole in enumerate(islice(batches(bench, data, steps, batch), steps)):
        (micro,) = whole
        rng = Rng(0, micro.rows, step).child("train")
        level = (rng.child("time").uniform((batch,)) * 1000).long()
        noise = rng.child("corruption").child("noise").normal((batch, *SHAPE))
        share = kept[level].float()[:, None, None, None]
        x = share.sqrt() * micro.x0 + (1 - share).sqrt() * noise
        loss = F.mse_loss(network(x, (level + 1) / 1000), noise)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses).tolist()
