"""`dcli train`: run, resume or extend a run."""

from __future__ import annotations

import copy
import json
import os
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusion_cli import (
    assemble,
    checkpoint,
    environment,
    failpoints,
    identity,
    loading,
)
from diffusion_cli import device as devices
from diffusion_cli.datasets import Dataset
from diffusion_cli.errors import CheckpointError, ConfigError
from diffusion_cli.latch import NonFinite
from diffusion_cli.place import Place, differences
from diffusion_cli.preview import previews
from diffusion_cli.rng import shuffled
from diffusion_cli.run_folder import RunFolder, agree
from diffusion_cli.settings import Every, Keep, TrainerSettings, seconds
from diffusion_cli.stop import Stop
from diffusion_cli.tracking import Bar, Meter, Tracker, introduce, last_loss, say
from diffusion_cli.trainer import Trainer, freeze, precision

Config = dict[str, Any]


def run(values: Config, overrides: list[str]) -> float | None:
    """Train, or continue; the last logged loss."""
    failpoints.arm(os.environ.get("DCLI_FAULT"))
    limit = seconds(values["trainer"]["time_limit"])
    folder = RunFolder(identity.run_folder(values).absolute())
    with Stop(limit) as stop:
        device = devices.choose(values["device"])
        values = _resolve(values, folder, device)
        if not values["fresh"] and _complete(values, folder):
            return last_loss(folder.path / "metrics.jsonl")
        devices.tune(device, values["trainer"]["deterministic"])
        data = assemble.dataset(values)
        if not hasattr(data, "spec"):
            data.prepare()
        context = Place(type(data), data.spec, device)
        parts = assemble.parts(values, data.spec, context=context)
        if values["trainable"] is not None:
            freeze(parts.model, values["trainable"])
        if values["init"]:
            for told in differences(checkpoint.load(values["init"]), values):
                say(f"init: {told}")
        data.prepare()
        for note in data.notes:
            say(f"dataset: {note}")
        with folder:
            if values["fresh"]:
                folder.set_aside()
            return _Run(values, folder, device, data, parts, stop).train(overrides)


def _resolve(values: Config, folder: RunFolder, device: torch.device) -> Config:
    """The config with its precision decided: once, by the first start."""
    values = copy.deepcopy(values)
    stored = None if values["fresh"] else folder.config()
    wanted = values["trainer"]["precision"]
    if stored and wanted == "auto":
        wanted = stored["trainer"]["precision"]
    values["trainer"]["precision"] = precision(device, wanted)
    if stored:
        agree(folder.path, stored, values)
    return values


def _complete(values: Config, folder: RunFolder) -> bool:
    """Say so if the run is complete already."""
    status, steps = folder.status(), values["trainer"]["steps"]
    done = int(status.get("step", 0))
    if status.get("status") != "complete" or done < steps:
        return False
    if not checkpoint.steps(folder.checkpoints):
        return False
    say(f"already complete at step {done}")
    if values["trainer"]["decay"] in ("constant", "inverse_sqrt"):
        say(f"to extend it: ... out={folder.path} trainer.steps=<more>")
    _invite(folder.path)
    return True


def _invite(path: Path) -> None:
    """The last words: how to sample, and on stdout where the run is."""
    shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    say(f"dcli sample ckpt={shown}")
    print(shown)


class _Run:
    """One run in its folder, from where it stands to its end or a stop."""

    def __init__(
        self,
        values: Config,
        folder: RunFolder,
        device: torch.device,
        data: Dataset,
        parts: assemble.Parts,
        stop: Stop,
    ) -> None:
        self.config, self.folder, self.device = values, folder, device
        self.data, self.parts, self.stop = data, parts, stop
        self.settings = TrainerSettings(**values["trainer"])
        self.every, self.keep = Every(**values["every"]), Keep(**values["checkpoint"])
        self.trainer = Trainer(
            self.settings,
            optimizer=values["optimizer"],
            seed=values["seed"],
            device=device,
            trainable=values["trainable"],
        )
        self.samples = f"{len(data)} {data.fingerprint}".strip()  # how many, of what
        self.meter = Meter(device)
        self.saved = -1  # the step last saved

    def train(self, overrides: list[str]) -> float | None:
        """Train to the end, a stop or an error; the status tells which."""
        checkpoint.clean(self.folder.checkpoints)
        found = checkpoint.newest(self.folder.checkpoints, aside=True)
        if found is None and self.config["init"]:
            self._init()
        self.state = self.trainer.start(self.parts.model, self.parts.objective)
        if found is None:
            self.parts.model.process.fit(self._fitting())
        else:
            self._resume(found)
        self.folder.describe(self.config, overrides, self.device)
        self._introduce(found)
        self.tracker = Tracker(self.folder.path, self.state.step, self.config)
        self.bar = Bar(self.state.step, self.settings.steps, self.settings.batch)
        try:
            self._loop()
        except BaseException as error:
            if isinstance(error, NonFinite):
                self._blame(error)
            self._fail(error)
            raise
        finally:
            self.bar.close()
            self.tracker.close(complete=self.state.step >= self.settings.steps)
        return self._close()

    def _loop(self) -> None:
        """Steps, and what happens between them."""
        self.stop.begin()
        self.folder.report("running", self.state.step)
        batches = self._batches(self.state.step, self.settings.steps)
        for progress in self.trainer.run(self.state, batches):
            step = progress.step
            last = step == self.settings.steps
            self.meter.update(progress)
            self.bar.advance()
            if last or step % self.every.log == 0:
                self._log(progress.lr, progress.grad_norm)
            if step % self.every.log == 0:  # else the sums are saved, to be extended
                self.meter.reset()
            with self.bar.paused():
                if last or (self.every.save and step % self.every.save == 0):
                    self._save()
                due = self.every.preview and (last or step % self.every.preview == 0)
                if due and self.parts.draws:
                    self._preview()
            if self.stop.requested:
                break
        if self.saved != self.state.step:
            self._save()

    def _close(self) -> float | None:
        """The status, and the last words."""
        step = self.state.step
        if step >= self.settings.steps:
            self.folder.report("complete", step)
            _invite(self.folder.path)
        else:
            self.folder.report("stopped", step)
            self.stop.end(f"saved step_{step:08d}; the same command continues")
            say(f"time budget reached at step {step}; the same command continues")
            print(self.folder.path)
        return self.tracker.last_loss()

    def _batches(self, first: int, last: int) -> Iterator[Iterator[loading.MicroBatch]]:
        return loading.batches(
            self.data,
            seed=self.config["seed"],
            first=first,
            last=last,
            batch=self.settings.batch,
            micro_batch=self.trainer.micro_batch,
            device=self.device,
            workers=self.settings.workers,
            reference=self.parts.objective.reference,
        )

    def _fitting(self) -> Iterator[Tensor]:
        """One epoch of clean samples, read only by a process that asks."""
        epoch = -(-len(self.data) // self.settings.batch)
        for batch in self._batches(0, epoch):
            for micro in batch:
                yield micro.x0

    def _init(self) -> None:
        """Start from the weights of another run."""
        source = checkpoint.load(self.config["init"])
        unused, fresh = source.init_model(self.parts.model)
        say(f"init: weights of {source.folder}, step {source.step}")
        for names, what in ((unused, "not in this model"), (fresh, "not in that run")):
            if names:
                say(f"init: {len(names)} tensors {what}: {', '.join(names[:5])} ...")

    def _resume(self, found: checkpoint.Checkpoint) -> None:
        then, now = found.manifest.get("samples"), self.samples
        if found.spec.plain() != self.data.spec.plain() or then != now:
            was, shape = found.spec.shape, self.data.spec.shape
            message = f"dataset: changed from {then} of {was} to {now} of {shape}"
            raise ConfigError(message, "name=<another>, or fresh=true")
        plain = found.plain()
        try:
            self.state.restore(found.tensors, plain["state"])
            self.meter.restore(plain["meter"])
        except (KeyError, TypeError, ValueError) as error:
            message = f"{found.folder}: state.json does not fit: {error}"
            raise CheckpointError(message, "fresh=true", "CKPT-CORRUPT") from error
        self.saved = found.step
        checkpoint.prune(self.folder.checkpoints, self.keep)  # a kill may precede it

    def _introduce(self, found: checkpoint.Checkpoint | None) -> None:
        count = sum(p.numel() for p in self.parts.model.parameters())
        where = f"{devices.label(self.device)}, {self.settings.precision}"
        introduce(self.config, f"{where}  {count:,} parameters")
        tail = f", resuming from {found.folder.name}" if found else ""
        say(f"{self.folder.path}{tail}")

    def _log(self, lr: float, grad_norm: Tensor) -> None:
        self.trainer.check(self.state)
        step = self.state.step
        values = self.meter.read() | {
            "lr": lr,
            "grad_norm": grad_norm.item(),
            "images_per_second": self.bar.rate(step),
            "memory_gib": devices.memory(self.device),
        }
        self.tracker.log(step, values)
        self.bar.show(step, values)

    def _save(self) -> None:
        self.trainer.check(self.state)
        about = {
            "config": self.config,
            "data": self.data.spec.plain(),
            "samples": self.samples,
            "versions": environment.versions(),
        }
        plain = {"state": self.state.plain(), "meter": self.meter.plain()}
        folder, step = self.folder.checkpoints, self.state.step
        checkpoint.save(folder, step, self.state.tensors(), plain, about)
        checkpoint.prune(folder, self.keep)
        self.folder.report("running", step)
        self.saved = step

    def _preview(self) -> None:
        """Pictures of samples at fixed seeds, from averaged and from raw weights."""
        seed, kind = self.config["seed"], type(self.data)
        for weights, x in previews(
            self.state, self.parts, seed, self.device, self.stop
        ):
            picture = kind.picture(x, self.data.spec)
            self.tracker.picture(self.state.step, picture, weights)

    def _blame(self, error: NonFinite) -> None:
        """Name the samples of a bad batch and keep what is needed to replay it."""
        batch = self.settings.batch
        place = torch.arange((error.step - 1) * batch, error.step * batch)
        indices = shuffled(place, len(self.data), self.config["seed"]).tolist()
        name = f"logs/nonfinite_step_{error.step:08d}.json"
        path = self.folder.write(name, json.dumps(error.report(indices)))
        error.message += f"; the batch is kept in {path}"

    def _fail(self, error: BaseException) -> None:
        if isinstance(error, Exception):
            text = "".join(traceback.format_exception(error))
            self.folder.report("failed", max(self.saved, 0), str(error))
            self.folder.write("logs/error.txt", text)
        else:
            self.folder.report("stopped", max(self.saved, 0))
