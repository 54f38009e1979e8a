"""Averaging gradients over processes: one bucket after the last backward, or DDP.

    torchrun --nproc-per-node 2 scripts/quality/averaging.py [NETWORK] [ROUNDS]

Both sides train the same network on the same data in turn (A B A B) in the same
processes: a step is two micro-batches and a sum. DDP overlaps the sum with the second
backward; ours begins after it and holds for every objective, whatever it calls and
however often it is differentiated.
"""

from __future__ import annotations

import statistics
import sys
import time
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from diffusion_cli import config, distributed
from diffusion_cli.core import Spec
from diffusion_cli.networks import networks

BATCH = 16  # of a micro-batch


def step(net: nn.Module, batches: list[Tensor], last: bool) -> None:
    """Two backward passes; the wrapped network sums in the second."""
    for i, x in enumerate(batches):
        quiet = getattr(net, "no_sync", nullcontext)
        with quiet() if last and i + 1 < len(batches) else nullcontext():
            net(x, torch.full((len(x),), 0.5)).square().mean().backward()


def main(name: str, rounds: int) -> None:
    node = config.read(config.folder() / "network" / f"{name}.yaml")
    spec = Spec((1, 8, 8)) if name == "unet_digits" else Spec((3, 32, 32))
    torch.manual_seed(0)
    with distributed.join(2) as world:
        net = networks.build(node, state=spec, out=spec.shape)
        wrapped = DistributedDataParallel(
            networks.build(node, state=spec, out=spec.shape)
        )
        batches = [torch.randn(BATCH, *spec.shape) for _ in range(2)]
        took: dict[str, list[float]] = {"one bucket": [], "DDP": []}
        for _ in range(rounds + 2):
            for side, own in (("one bucket", net), ("DDP", wrapped)):
                own.zero_grad()
                world.meet()
                begun = time.perf_counter()
                step(own, batches, last=side == "DDP")
                if side == "one bucket":
                    world.sum([p.grad for p in own.parameters() if p.grad is not None])
                world.meet()
                took[side].append(time.perf_counter() - begun)
        if world.rank == 0:
            ours, ddp = (times[2:] for times in took.values())
            pairs = sorted(a / b for a, b in zip(ours, ddp, strict=True))
            count = sum(p.numel() for p in net.parameters())
            print(f"{name}, {count:,} parameters, 2 processes, {rounds} rounds")
            for side, times in (("one bucket", ours), ("DDP", ddp)):
                print(f"  {side:<12} {1e3 * statistics.median(times):8.1f} ms")
            low, high = pairs[len(pairs) // 10], pairs[-1 - len(pairs) // 10]
            print(f"  ratio {statistics.median(pairs):.3f} ({low:.3f} to {high:.3f})")


if __name__ == "__main__":
    words = dict(enumerate(sys.argv[1:]))
    main(words.get(0, "unet_digits"), int(words.get(1, 30)))
