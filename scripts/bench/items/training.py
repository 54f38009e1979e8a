"""A training step of the CIFAR-10 network: dcli beside diffusers, in turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from statistics import median

from chip import Bench, Once, Row, free, in_turn, milli, ready, spread, tuned
from duel import ratios
from recipe import recipe
from subjects import others_training, own_training
from torch.utils.flop_counter import FlopCounterMode

from items.ceilings import multiplying

STEPS, ROUNDS = 20, 7
BATCHES = (512, 128, 64)  # the largest first: it decides the goal
PATIENCE = 40  # seconds until a side is warm, or it is given up
OWN, COMPILED = "dcli, as its config runs it", "dcli, trainer.compile=true"
Makers = dict[str, Callable[[], Once]]


def measure(bench: Bench) -> Iterator[Row]:
    """Every side at every batch, each batch with its share of the time that is left."""
    batches = (2,) if bench.small else BATCHES
    share = gflop(bench) / 1e3 / multiplying(bench)
    for number, batch in enumerate(batches):
        until = bench.until - bench.left() * (1 - 1 / (1 + len(batches) - number))
        yield from at(bench, batch, sides(bench, batch), PATIENCE, until, share)
        free(bench.device)
    if bench.small:
        yield {"side": COMPILED, "fault": "left out here: compiling takes a minute"}
    else:  # at the end, since nobody knows how long compiling takes
        largest = batches[0]
        makers = {
            OWN: partial(own, bench, largest),
            COMPILED: partial(own, bench, largest, compile=True),
        }
        yield from at(bench, largest, makers, bench.left() - 10, bench.until, share)
    what = "dcli, in a CUDA graph or with a capturable optimiser"
    yield {"side": what, "fault": "not offered"}


def at(
    bench: Bench,
    batch: int,
    makers: Makers,
    patience: float,
    until: float,
    share: float,
) -> Iterator[Row]:
    """One batch.

    Args:
        bench: Where.
        batch: Images in a step.
        makers: What is compared, ours first.
        patience: Seconds until a side is warm.
        until: When the last round has to end.
        share: Part of the peak that one image in a second is.
    """
    once, rows = ready(bench, makers, patience)
    times, rounds = (1, 2) if bench.small else (STEPS, ROUNDS)
    seen = in_turn(bench, once, times, rounds, until)
    for name in makers:
        row = {"side": name, "batch": batch} | rows[name]
        if name in seen:
            took = median(seen[name])
            row |= {"img/s": batch / took, "ms": milli(took)}
            row |= {"spread %": 100 * spread(seen[name]), "rounds": len(seen[name])}
            row |= {"% of bf16 peak": 100 * share * batch / took}
            if OWN in seen:
                row["time, dcli = 1"] = ratios(seen[OWN], seen[name])["median"]
        yield row


def sides(bench: Bench, batch: int) -> Makers:
    """What is compared at every batch; `ready` makes them one by one."""
    place = {"device": str(bench.device), "batch": batch, "small": bench.small}
    half = place | {"bf16": True}
    best = half | {"channels_last": True, "tuned": True}
    return {
        OWN: partial(own, bench, batch),
        "diffusers, its example, fp32": partial(other, False, place),
        "diffusers, its example, bf16": partial(other, False, half),
        "diffusers, bf16, channels_last, fused": partial(other, True, best),
    }


def own(bench: Bench, batch: int, **trainer: bool) -> Once:
    """A step of `dcli train +exp=ddpm_cifar`."""
    values = recipe(bench.small, batch=batch, **trainer)
    values["device"] = str(bench.device)
    trains, state = own_training.built(values)
    steps = trains.run(state, own_training.batches(trains))
    return tuned(lambda: next(steps), True)


def other(tensor_cores: bool, how: dict[str, bool | int | str]) -> Once:
    """A step of diffusers' example, with the settings of torch that belong to it."""
    return tuned(others_training.diffusers(**how), tensor_cores)


def gflop(bench: Bench) -> float:
    """GFLOP of an image: of products and convolutions, forward and backward."""
    batch = 2
    once = own(bench, batch)
    with FlopCounterMode(display=False) as counter:
        once()
    return counter.get_total_flops() / batch / 1e9
