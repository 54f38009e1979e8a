"""Minutes of CIFAR-10 through `dcli train`, and what `dcli sample` draws then.

Without Hydra there are no commands: then it is the trainer and a sampler that they use.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from chip import Bench, Row
from PIL import Image
from recipe import SMALL, Config, recipe
from subjects import own_training

from diffusion_cli import assemble, loading
from items import photographs
from items.sampling import drawing

DRAWING = 35  # seconds that are left for samples, start-up and the last checkpoint
LEAST = 10  # seconds of training that are worth it
NETWORK = SMALL | {"multipliers": [1, 2, 2], "blocks": 1}


def measure(bench: Bench) -> Iterator[Row]:
    """Train for all the time that is left but the end; then draw, and keep the grid."""
    data = photographs.node("test" if bench.small else "train")
    limit = bench.left() - (20 if bench.small else DRAWING)
    if limit < LEAST:
        raise TimeoutError(f"{bench.left():.0f} s are left, too few to train")
    bench.picture.parent.mkdir(parents=True, exist_ok=True)
    way = commands if find_spec("hydra") else bare
    yield from way(bench, changes(bench, data, limit), *size(bench))


def size(bench: Bench) -> tuple[int, int]:
    """How many samples, in how many steps."""
    return (16, 20) if bench.small else (64, 50)


def changes(bench: Bench, data: Config, limit: float) -> Config:
    """What differs from the recipe."""
    changed: Config = {
        "dataset": data,
        "device": str(bench.device),
        "trainer": {"time_limit": round(limit, 1), "warmup": 500},
        "every": {"log": 100, "save": 10_000, "preview": 0},
    }
    if bench.small:
        changed["trainer"] |= {"batch": 8, "warmup": 20}
        changed |= {"network": NETWORK, "optimizer": {"lr": 2e-3}}
        changed["every"]["log"] = 10
    return changed


def commands(bench: Bench, changed: Config, n: int, steps: int) -> Iterator[Row]:
    """As anybody types it."""
    with tempfile.TemporaryDirectory() as place:
        run = Path(place) / "run"
        chosen = ["+exp=ddpm_cifar", f"dataset={changed['dataset']['name']}"]
        took = command("train", *chosen, f"out={run}", *typed(changed))
        yield {"side": "`dcli train +exp=ddpm_cifar`", "s": took} | told(run)
        device = f"device={bench.device}"
        words = [f"ckpt={run}", f"n={n}", f"steps={steps}", "format=grid", device]
        took = command("sample", "sampler=ddim", *words)
        (grid,) = run.glob("samples/*/grid.png")
        shutil.copyfile(grid, bench.picture)
    yield {"side": "`dcli sample`", "s": took, "samples": bench.picture.name}


def command(*words: str) -> float:
    """Seconds of a command of dcli."""
    begun = time.monotonic()
    line = [sys.executable, "-m", "diffusion_cli", *words]
    done = subprocess.run(line, capture_output=True, text=True)
    if done.returncode:
        last = [f"exit {done.returncode}", *done.stderr.strip().splitlines()][-1]
        raise RuntimeError(f"dcli {words[0]}: {last}")
    return time.monotonic() - begun


def typed(values: Config, prefix: str = "") -> Iterator[str]:
    """`a.b=c` for every key but the names of components."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from typed(value, f"{prefix}{key}.")
        elif key != "name":
            yield f"{prefix}{key}={json.dumps(value)}"


def told(run: Path) -> Row:
    """What the run says of itself."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    logged = [line for line in map(json.loads, lines) if "loss" in line]
    row: Row = {"steps": json.loads((run / "status.json").read_text())["step"]}
    if logged:
        row["img/s"] = median(line["images_per_second"] for line in logged)
        row |= {"loss": logged[-1]["loss"], "GiB": logged[-1]["memory_gib"]}
    return row


def bare(bench: Bench, changed: Config, n: int, steps: int) -> Iterator[Row]:
    """The same steps on the same data, without a run folder around them."""
    begun = time.monotonic()
    values = merged(recipe(), changed)
    limit = begun + values["trainer"]["time_limit"]
    data = assemble.dataset(values)
    data.prepare()
    trainer, state = own_training.built(values)
    batch, every = trainer.settings.batch, values["every"]["log"]
    stream = loading.batches(
        data,
        seed=0,
        first=0,
        last=trainer.settings.steps,
        batch=batch,
        micro_batch=batch,
        device=bench.device,
        workers=0,
    )
    losses, rates, last = [], [], time.monotonic()
    for progress in trainer.run(state, stream):
        if progress.step % every:
            continue
        losses.append(progress.losses.mean().item())
        now = time.monotonic()
        rates.append(every * batch / (now - last))
        last = now
        if now > limit:
            break
    trainer.check(state)
    row: Row = {"side": "the trainer alone, since Hydra is not installed"}
    row |= {"s": time.monotonic() - begun, "steps": state.step}
    yield row | {"img/s": median(rates), "loss": sum(losses[-10:]) / len(losses[-10:])}
    begun = time.monotonic()
    with state.averaged() as model:
        draw = drawing(model, values["sampler"], n, steps, bench.device)
        sheet = data.picture(draw(), data.spec)
    Image.fromarray(sheet.permute(1, 2, 0).numpy()).save(bench.picture)
    took = time.monotonic() - begun
    yield {"side": "its sampler alone", "s": took, "samples": bench.picture.name}


def merged(under: Config, over: Config) -> Config:
    """A config with other keys, nested ones too; a data set as a whole."""
    found = dict(under)
    for key, value in over.items():
        old: Any = found.get(key)
        nested = isinstance(value, dict) and isinstance(old, dict) and key != "dataset"
        found[key] = merged(old, value) if nested else value
    return found
