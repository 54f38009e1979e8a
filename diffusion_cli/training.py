"""One run in its folder: steps, and what happens between them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from diffusion_cli import assemble, checkpoint, environment, loading
from diffusion_cli import device as devices
from diffusion_cli.datasets import Dataset
from diffusion_cli.errors import CheckpointError, ConfigError, StorageError
from diffusion_cli.latch import NonFinite
from diffusion_cli.preview import previews
from diffusion_cli.progress import Judge
from diffusion_cli.rng import shuffled
from diffusion_cli.run_folder import RunFolder, agree
from diffusion_cli.saving import Saver
from diffusion_cli.settings import Every, Keep, TrainerSettings
from diffusion_cli.stop import Stop
from diffusion_cli.tracking import (
    Bar,
    Meter,
    Tracker,
    answer,
    introduce,
    last_loss,
    say,
)
from diffusion_cli.trainer import Trainer
from diffusion_cli.world import World

Config = dict[str, Any]


class Run:
    """One run in its folder, from where it stands to its end or a stop.

    Every rank of the world makes every step; the first one alone writes and draws.
    """

    def __init__(
        self,
        values: Config,
        folder: RunFolder,
        device: torch.device,
        data: Dataset,
        parts: assemble.Parts,
        stop: Stop,
        world: World,
    ) -> None:
        self.config, self.folder, self.device = values, folder, device
        self.data, self.parts, self.stop, self.world = data, parts, stop, world
        self.settings = TrainerSettings(**values["trainer"])
        self.every, self.keep = Every(**values["every"]), Keep(**values["checkpoint"])
        self.trainer = Trainer(
            self.settings,
            optimizer=values["optimizer"],
            seed=values["seed"],
            device=device,
            trainable=values["trainable"],
            world=world,
        )
        self.samples = f"{len(data)} {data.fingerprint}".strip()  # how many, of what
        self.judge = Judge(values, folder, device, stop, world)
        self.judge.suit(parts.model.process)
        self.meter = Meter(device)
        self.saver = Saver(folder, self.keep, stop)
        self.tracker: Tracker | None = None  # of the first rank
        self.skipped = 0  # steps told of

    def train(self, overrides: list[str]) -> float | None:
        """Train to the end, a stop or an error; the status tells which."""
        found = self.world.led(self._newest)
        if found is None and self.config["init"]:
            self._init()
        self.state = self.trainer.start(self.parts.model, self.parts.objective)
        if found is None:
            self.world.once(self.folder.lost)
            self.parts.model.process.fit(self._fitting())
        else:
            self._resume(found)
        files = self.state.tensors().values()
        self.world.copy([t for file in files for t in file.values()])
        self._introduce(found)
        self.world.once(lambda: self._open(overrides))
        self.bar = Bar(self.state.step, self.settings.steps, self.settings.batch)
        try:
            self._loop()
        except BaseException as error:
            if isinstance(error, Exception):
                with suppress(StorageError):
                    self.saver.watch(wait=True)
            if isinstance(error, NonFinite):
                self._blame(error)
            self.folder.fail(error, max(self.saver.saved, 0), self.world.rank)
            raise
        finally:
            self.bar.close()
            if self.tracker:
                self.tracker.close(self.complete)
        return self._close()

    @property
    def complete(self) -> bool:
        """Whether the last step is done."""
        return self.state.step >= self.settings.steps

    def _newest(self) -> checkpoint.Checkpoint | None:
        checkpoint.clean(self.folder.checkpoints)
        return checkpoint.newest(self.folder.checkpoints, aside=True)

    def _open(self, overrides: list[str]) -> None:
        """Write what is run and on what, and begin to keep its metrics."""
        self.folder.describe(self.config, overrides, self.device)
        self.tracker = Tracker(self.folder.path, self.state.step, self.config)
        self.folder.report("running", self.state.step)

    def _loop(self) -> None:
        """Steps, and what happens between them."""
        self.stop.begin()
        first, last = self.state.step, self.settings.steps
        if self.judge.missed(first):
            self._measure()
        if self.judge.weary():
            return
        batches = self._batches(first, last, self.world.rank, self.world.size)
        for progress in self.trainer.run(self.state, batches):
            step = progress.step
            if step == first + 1:
                self.state.demand_savable()
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
                    self.world.once(self._preview)
                if self.judge.due(step, last):
                    self._measure()
            self.saver.watch()
            if self.stop.agreed(self.world.agree) or self.judge.weary():
                break
        if self.saver.asked != self.state.step:
            self._save()
        self.world.once(lambda: self.saver.watch(wait=True))

    def _measure(self) -> None:
        """Measure the checkpoint of this step."""
        step = self.state.step
        if self.saver.asked != step:
            self._save()
        self.world.once(lambda: self.saver.watch(wait=True))
        numbers, about = self.judge.measure(step)
        if self.tracker:
            self.tracker.log(step, numbers, {"measured": about})

    def _close(self) -> float | None:
        """The status, and the last words."""
        step = self.state.step
        if self.complete:
            self.world.once(lambda: self.folder.report("complete", step))
        else:
            self.world.once(lambda: self.folder.report("stopped", step))
            self.stop.end(f"saved step_{step:08d}; the same command continues")
            out_of_time = ("time budget reached", "the same command continues")
            why, then = self.judge.ended or out_of_time
            say(f"{why} at step {step}; {then}")
            answer(self.folder.path)
        return self.judge.worth(last_loss(self.folder.path / "metrics.jsonl"))

    def _batches(
        self, first: int, last: int, rank: int = 0, size: int = 1
    ) -> Iterator[Iterator[loading.MicroBatch]]:
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
            rank=rank,
            size=size,
        )

    def _fitting(self) -> Iterator[Tensor]:
        """One epoch of clean samples, read only by a process that asks."""
        epoch = -(-len(self.data) // self.settings.batch)
        for batch in self._batches(0, epoch):
            for micro in batch:
                yield micro.x0

    def _init(self) -> None:
        """Start from the weights of another run."""
        source = checkpoint.load(self.config["init"], "init")
        unused, fresh = source.init_model(self.parts.model)
        say(f"init: weights of {source.folder}, step {source.step}")
        for names, what in ((unused, "not in this model"), (fresh, "not in that run")):
            if names:
                say(f"init: {len(names)} tensors {what}: {', '.join(names[:5])} ...")

    def _resume(self, found: checkpoint.Checkpoint) -> None:
        agree(self.folder.path, found.config, self.config)  # config.yaml may be gone
        then, now = found.manifest.get("samples"), self.samples
        if found.spec.plain() != self.data.spec.plain() or then != now:
            was, shape = found.spec.shape, self.data.spec.shape
            message = f"dataset: changed from {then} of {was} to {now} of {shape}"
            raise ConfigError(message, "name=<another>, or fresh=true")
        plain = found.plain()
        try:
            self.state.restore(found.tensors, plain["state"])
            self.meter.restore(plain["meter"])
            self.skipped = self.trainer.check(self.state)
        except (KeyError, TypeError, ValueError) as error:
            message = f"{found.folder}: state.json does not fit: {error}"
            raise CheckpointError(message, "fresh=true", "CKPT-CORRUPT") from error
        self.saver.asked = self.saver.saved = found.step
        self.world.once(self._prune)  # a kill may have preceded it

    def _introduce(self, found: checkpoint.Checkpoint | None) -> None:
        count = sum(p.numel() for p in self.parts.model.parameters())
        where = f"{devices.label(self.device)}, {self.settings.precision}"
        introduce(self.config, f"{where}  {count:,} parameters", self.parts.draws)
        tail = f", resuming from {found.folder.name}" if found else ""
        say(f"{self.folder.path}{tail}")

    def _log(self, lr: float, grad_norm: Tensor) -> None:
        skipped, allowed = self.trainer.check(self.state), self.settings.skip_nonfinite
        if skipped > self.skipped:
            self.skipped = skipped
            say(f"skipped {skipped}/{allowed} steps that were not finite")
        step = self.state.step
        values = self.meter.read() | {"lr": lr}
        if grad_norm.isfinite():
            values["grad_norm"] = grad_norm.item()
        values |= {
            "images_per_second": self.bar.rate(step),
            "memory_gib": devices.peak(self.device),
        }
        self.world.once(lambda: self._tell(step, values))

    def _tell(self, step: int, values: dict[str, float]) -> None:
        assert self.tracker is not None
        self.tracker.log(step, values)
        self.bar.show(step, values)

    def _save(self) -> None:
        self.trainer.check(self.state)
        self.world.same(dict(self.state.model.named_parameters()))
        self.world.once(self._write)
        self.saver.asked = self.state.step  # on the other ranks too

    def _write(self) -> None:
        """Begin a checkpoint of this step; it is written while training goes on."""
        about = {
            "config": self.config,
            "data": self.data.spec.plain(),
            "samples": self.samples,
            "versions": environment.versions(),
        }
        plain = {"state": self.state.plain(), "meter": self.meter.plain()}
        tensors, best = self.state.tensors(), self.judge.best()
        self.saver.begin(self.state.step, tensors, plain, about, best)

    def _prune(self) -> None:
        checkpoint.prune(self.folder.checkpoints, self.keep, self.judge.best())

    def _preview(self) -> None:
        """Pictures of samples at fixed seeds, from averaged and from raw weights."""
        assert self.tracker is not None
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
        report = json.dumps(error.report(indices))
        if self.world.rank == 0:
            path = self.folder.write(name, report)
            error.message += f"; the batch is kept in {path}"
