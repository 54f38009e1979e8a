"""What a checkpoint costs the steps around it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from chip import Bench, Marks, Row, milli, tune
from recipe import recipe
from subjects import own_training
from subjects.own_checkpoints import whole

from diffusion_cli.run_folder import RunFolder
from diffusion_cli.saving import Saver
from diffusion_cli.settings import Keep
from diffusion_cli.stop import Stop

ROUNDS, STEPS, SAVED = 3, 50, 10  # of each way; steps of a round; before which it saves
Save = Callable[[], None]


def measure(bench: Bench) -> Iterator[Row]:
    """Rounds in turn; a save is on the disk before the next round begins."""
    batch, rounds, steps = (2, 2, 6) if bench.small else (128, ROUNDS, STEPS)
    values = recipe(bench.small, batch=batch)
    values["device"] = str(bench.device)
    trainer, state = own_training.built(values)
    tune(True)
    walk = trainer.run(state, own_training.batches(trainer))
    with tempfile.TemporaryDirectory() as place, RunFolder(Path(place) / "r") as folder:
        saver = Saver(folder, Keep(), Stop())

        def asynchronous() -> None:
            about = {"config": {}, "data": own_training.IMAGE.plain()}
            saver.begin(state.step, state.tensors(), state.plain(), about, None)

        def plain() -> None:
            torch.save(whole(state), Path(place) / "checkpoint.pt")

        ways: dict[str, Save] = {
            "no save": lambda: None,
            "dcli": asynchronous,
            "torch.save": plain,
        }
        seen: dict[str, list[list[float]]] = {name: [] for name in ways}
        for _ in range(rounds + 1):
            for name, save in ways.items():
                seen[name].append(_steps(bench, walk, save, steps))
                saver.watch(wait=True)
    for name, found in seen.items():
        yield {"side": name, "batch": batch} | _row(found[0], found[1:])


def _steps(bench: Bench, walk: Iterator[Any], save: Save, steps: int) -> list[float]:
    """Seconds of every step of a round, a save among them."""
    marks = Marks(bench.device)
    marks.set()
    for number in range(steps):
        if number == min(SAVED, steps // 2):
            save()
        next(walk)
        marks.set()
    return marks.gaps()


def _row(first: list[float], rounds: list[list[float]]) -> Row:
    """Quantiles of all steps but those of the first round, which makes ready."""
    cuts = quantiles(chain.from_iterable(rounds), n=100, method="inclusive")
    usual, rare = cuts[49], cuts[98]
    lost = [sum(each) - usual * len(each) for each in rounds]
    return {
        "ms p50": milli(usual),
        "ms p99": milli(rare),
        "longest ms": milli(median(map(max, rounds))),
        "longest ms, first round": milli(max(first)),
        "ms lost in a round": milli(median(lost)),
    }
