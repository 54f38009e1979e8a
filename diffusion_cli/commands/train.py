"""`dcli train`: run, resume or extend a run."""

from __future__ import annotations

import copy
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from diffusion_cli import (
    artifact,
    assemble,
    checkpoint,
    distributed,
    failpoints,
    identity,
)
from diffusion_cli import device as devices
from diffusion_cli.errors import ConfigError
from diffusion_cli.parametrisations import parametrisations
from diffusion_cli.paths import assignment
from diffusion_cli.place import Place, differences
from diffusion_cli.progress import Judge
from diffusion_cli.run_folder import RunFolder, agree
from diffusion_cli.settings import TrainerSettings, seconds
from diffusion_cli.stop import Stop
from diffusion_cli.tracking import answer, last_loss, say
from diffusion_cli.trainer import freeze
from diffusion_cli.training import Run

Config = dict[str, Any]


def run(values: Config, overrides: list[str]) -> float | None:
    """Train, or continue; the last logged loss."""
    failpoints.arm(os.environ.get("DCLI_FAULT"))
    limit = seconds(values["trainer"]["time_limit"])
    folder = RunFolder(identity.run_folder(values).absolute())
    with Stop(limit) as stop, distributed.join(values["trainer"]["devices"]) as world:
        device = devices.choose(values["device"], world.local)
        values = _resolve(values, folder, device, world.size)
        if not values["fresh"] and _complete(values, folder):
            judge = Judge(values, folder, device, stop, world)
            return judge.worth(last_loss(folder.path / "metrics.jsonl"))
        devices.tune(device, values["trainer"]["deterministic"])
        data = assemble.dataset(values)
        if not hasattr(data, "spec"):
            world.led(data.prepare)
        context = Place(type(data), data.spec, device)
        parts = assemble.parts(values, data.spec, context=context)
        if values["trainable"] is not None:
            freeze(parts.model, values["trainable"])
        if values["init"]:
            for told in differences(checkpoint.load(values["init"], "init"), values):
                say(f"init: {told}")
        world.led(data.prepare)
        for note in data.notes:
            say(f"dataset: {note}")
        with ExitStack() as stack:
            world.once(lambda: stack.enter_context(folder))
            if values["fresh"]:
                world.once(folder.set_aside)
            run = Run(values, folder, device, data, parts, stop, world)
            loss = run.train(overrides)
            if run.complete:
                _invite(folder.path, values)
            return loss


def _resolve(
    values: Config, folder: RunFolder, device: torch.device, size: int
) -> Config:
    """The config with its number of ranks, and the precision of its first start."""
    values = copy.deepcopy(values)
    values["trainer"]["devices"] = size
    try:
        TrainerSettings(**values["trainer"])
    except ValueError as error:
        raise ConfigError(f"trainer.{error}") from error
    stored = None if values["fresh"] else folder.config()
    wanted = values["trainer"]["precision"]
    if stored and wanted == "auto":
        wanted = stored["trainer"]["precision"]
    values["trainer"]["precision"] = devices.precision(device, wanted)
    if stored:
        agree(folder.path, stored, values)
    return values


def _complete(values: Config, folder: RunFolder) -> bool:
    """Say so if the run is complete already."""
    status, steps = folder.status(), values["trainer"]["steps"]
    done = int(status.get("step", 0))
    if status.get("status") != "complete" or done < steps:
        return False
    if not any(map(artifact.standing, checkpoint.steps(folder.checkpoints)[:1])):
        return False
    say(f"already complete at step {done}")
    if values["trainer"]["decay"] in ("constant", "inverse_sqrt"):
        say(f"to extend it: ... out={folder.path} trainer.steps=<more>")
    _invite(folder.path, values)
    if values["metric"]:
        say("metric: a complete run is measured by `dcli eval`, which takes these keys")
    return True


def _invite(path: Path, values: Config) -> None:
    """The last words: how to sample, and on stdout where the run is."""
    shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    if parametrisations[values["parametrisation"]["name"]].about == "x0":
        weights = "" if values["trainer"]["ema"] else " weights=raw"
        say(f"dcli sample {assignment('ckpt', str(shown))}{weights}")
    else:
        run = assignment("guidance.run", str(shown))
        say(f"dcli sample ckpt=... guidance=classifier {run}")
    answer(shown)
