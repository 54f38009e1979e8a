"""Scale: what grows with batch, resolution, depth, processes, data and runs."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from duel import Code, Command, Setting, Side, summary
from goals import Result, contest, row
from subjects.own_runs import made

UNET = ["+exp=ddpm_cifar", "device=cpu", "network.channels=32", "network.dropout=0"]
UNET += ["network.attention=[]", "network.blocks=1", "network.multipliers=[1,2,2]"]
DIT = ["+exp=ddpm_cifar", "device=cpu", "network=dit_tiny"]
SIZES = tuple(10**power for power in range(3, 8))
RUNS = (10, 1_000, 10_000)
STEP = "Scale: a training step, processor time of an image"


@row("scale_step")
def steps(setting: Setting) -> list[Result]:
    """Batch, resolution and depth: does time grow as the counted work does?"""
    batches, usual = ((1,), 1) if setting.small else ((1, 4, 16, 64), 8)
    sizes = (8,) if setting.small else (16, 32, 64)
    shapes = ((2, 1, "[1,2]"), (3, 1, "[1,2,2]"), (4, 1, "[1,2,2,2]"))
    shapes += ((3, 2, "[1,2,2]"), (3, 4, "[1,2,2]"))
    tables: dict[str, dict[str, dict[str, Any]]] = {
        "by batch, small U-Net, 32x32": {
            f"batch {batch}": _words(UNET, batch) for batch in batches
        },
        "by resolution, small U-Net, batch 8": {
            f"{pixels}x{pixels}": _words(UNET, usual) | {"pixels": pixels}
            for pixels in sizes
        },
        "by depth, small U-Net, batch 8, 32x32": {
            f"{levels} levels of {blocks} blocks": _words(
                [*UNET, f"network.blocks={blocks}", f"network.multipliers={widths}"],
                usual,
            )
            for levels, blocks, widths in shapes[: 1 if setting.small else None]
        },
        "by depth, DiT of width 192, 256 tokens, batch 8": {
            f"{depth} blocks": _words([*DIT, f"network.depth={depth}"], usual)
            for depth in ((1,) if setting.small else (3, 6, 12, 24))
        },
    }
    also = ["GFLOP", "GFLOP/s", "MB"]
    return [
        _told(f"{STEP} {title}", "own_scale.step", sides, setting, also)
        for title, sides in tables.items()
    ]


def _words(words: list[str], batch: int) -> dict[str, Any]:
    return {"words": [*words, f"trainer.batch={batch}"]}


def _told(
    title: str,
    of: str,
    sides: Mapping[str, dict[str, Any]],
    setting: Setting,
    also: list[str],
    measured: str = "",
    warm: int = 1,
) -> Result:
    """A table of a function of `subjects` for several arguments."""
    codes: list[Side] = [
        Code(name, given.pop("of", of), setting, arguments=given, warm=warm)
        for name, given in sides.items()
    ]
    result, _ = contest("", title, codes, setting)
    result.also, result.measured = also, measured
    return result


@row("scale_data")
def data(setting: Setting) -> list[Result]:
    """The indices of a step, and the first batch, of a data set of any size."""
    sizes = SIZES[:2] if setting.small else SIZES
    asked: dict[str, dict[str, Any]] = {
        f"{size:.0e} images": {"length": size} for size in sizes
    }
    asked[f"a permutation in memory, {sizes[-1]:.0e}"] = {
        "of": "own_scale.permuted",
        "length": sizes[-1],
    }
    first = {f"{size:.0e} images": {"length": size} for size in sizes}
    paper = (
        "On paper: 3,072 bytes on disk for an image of 3x32x32, 31 GB for 1e7, and 8 "
        "bytes in memory for its label. Up to 2 GiB, 7e5 such images, live in memory "
        "or on the device; more are mapped from the disk."
    )
    return [
        _told(
            "Scale: the indices of a step of 128 images",
            "own_scale.indices",
            asked,
            setting,
            ["MB"],
        ),
        _told(
            "Scale: from a cached data set of 3x32x32 to the first batch",
            "own_scale.first_batch",
            first,
            replace(setting, rounds=min(3, setting.rounds)),
            ["MB"],
            paper,
        ),
    ]


@row("scale_runs")
def runs(setting: Setting) -> list[Result]:
    """Commands that read a folder of runs or of jobs."""
    counts = RUNS[:2] if setting.small else RUNS
    few = replace(setting, rounds=min(2, setting.rounds))
    with tempfile.TemporaryDirectory() as place:
        made(Path(place), counts)
        out = {"out": f"{place}/report.html"}
        results = [
            _told(
                f"Scale: `dcli {' '.join(words)}`",
                "own_runs.command",
                {
                    f"{n:,} {of}": {"words": words, "folder": f"{place}/{of}-{n}"} | to
                    for n in counts
                },
                few,
                ["MB"],
                warm=0,
            )
            for words, of, to in (
                (["runs", "ls"], "runs", {}),
                (["runs", "diff"], "runs", {}),
                (["report"], "runs", out),
                (["sweep", "status"], "jobs", {}),
            )
        ]
        looks = {f"{n:,} jobs": {"folder": f"{place}/jobs-{n}"} for n in counts}
        title = "Scale: a look at a sweep that waits, of which 5 a second"
        return [*results, _told(title, "own_runs.watching", looks, few, [])]


@dataclass
class Longer(Side):
    """What more steps of a run cost, for each image.

    Args:
        name: What it is called in tables.
        words: Of `dcli train`.
        setting: How.
        steps: Of a short run and of a long one.
        batch: Images of a step.
    """

    name: str
    words: list[str]
    setting: Setting
    steps: tuple[int, int]
    batch: int

    def round(self) -> dict[str, float]:
        short, long = (self._run(steps) for steps in self.steps)
        images = (self.steps[1] - self.steps[0]) * self.batch
        return {key: (long[key] - short[key]) / images for key in long}

    def _run(self, steps: int) -> dict[str, float]:
        with tempfile.TemporaryDirectory() as place:
            out = Path(place) / "run"
            words = [sys.executable, "-m", "diffusion_cli", "train", *self.words]
            words += [f"trainer.steps={steps}", f"out={out}"]
            took = Command(self.name, words, self.setting).round()
            lines = (out / "metrics.jsonl").read_text().splitlines()
            assert json.loads(lines[-1])["step"] == steps
        return took


@row("scale_processes")
def processes(setting: Setting) -> list[Result]:
    """Two processes of one thread each against one, at the same global batch."""
    results = []
    steps, batches = (20, 80), (128, 512)
    if setting.small:
        steps, batches, setting = (1, 2), (8,), replace(setting, rounds=1)
    for batch in batches:
        words = ["+exp=digits", "device=cpu", f"trainer.batch={batch}"]
        words += ["every.preview=0", "every.log=10", "every.save=100000"]
        sides: list[Side] = [
            Longer(
                f"{n} process{'es' * (n > 1)}",
                [*words, f"trainer.devices={n}"],
                setting,
                steps,
                batch,
            )
            for n in (1, 2)
        ]
        title = f"Scale: processes, digits, global batch {batch}, an image"
        result, seen = contest("", title, sides, setting)
        clock = [summary(seen[side.name]["seconds"])["median"] for side in sides]
        times = clock[1] / clock[0]
        result.measured = f"By the clock: {times:.2f}x of the time of one process."
        results.append(result)
    return results
