"""What `dcli eval` measures, and where the numbers go."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusion_cli import assemble, checkpoint, classifier, config, fitting
from diffusion_cli.artifact import storage
from diffusion_cli.datasets import Dataset
from diffusion_cli.datasets.storage import staged
from diffusion_cli.denoiser import Model
from diffusion_cli.derived import Derived
from diffusion_cli.drawing import Drawing
from diffusion_cli.errors import ConfigError
from diffusion_cli.loading import once, prepare_like
from diffusion_cli.metrics import Batch, Metric, Result, Subject, Walk, metrics
from diffusion_cli.paths import typed
from diffusion_cli.place import kind
from diffusion_cli.processes import Process
from diffusion_cli.rebuild import Rebuilt, laid_over, rebuild
from diffusion_cli.registry import ROLES
from diffusion_cli.rng import Rng
from diffusion_cli.stop import Stop
from diffusion_cli.world import Alone, World

Config = dict[str, Any]
SPLITS = {"train": "test", "test": "train"}
ORDER = 0  # seed of the order of data: references are the same for every seed


def several(values: Config) -> list[Config]:
    """The nodes of all metrics, with what the command says to all of them."""
    chosen = values["metric"]
    nodes = chosen if isinstance(chosen, list) else [chosen]
    if any("name" not in node for node in nodes):
        raise ConfigError("metric: name one", "metric=likelihood; dcli list metric")
    names = [node["name"] for node in nodes]
    if twice := [name for name in names if names.count(name) > 1]:
        message = f"metric: `{twice[0]}` is there twice"
        raise ConfigError(message, "one command for each")
    return [_told(node, values) for node in nodes]


def _told(node: Config, values: Config) -> Config:
    """A node with `n=`, `seeds=` and `features=`, where it has such arguments."""
    changes: Config = {
        key: values[key]
        for key in ("n", "seeds", "features")
        if values[key] is not None and key in node
    }
    inner = {
        key: _told(value, values)
        for key, value in node.items()
        if isinstance(value, dict) and value.get("name") in metrics.names()
    }
    return {**node, **inner, **changes}


class Trained(Subject):
    """A checkpoint with its data, and its samples as `dcli sample` would draw them.

    Args:
        found: The checkpoint.
        values: The keys of `eval.yaml`.
        device: Where to compute.
        stop: Asked between batches.
        data: The data set, if it was built before.
        world: The processes that share the work.
        training: Whether a run measures itself on its way.
    """

    def __init__(
        self,
        found: checkpoint.Checkpoint,
        values: Config,
        device: torch.device,
        stop: Stop,
        data: Dataset | None = None,
        world: World | None = None,
        training: bool = False,
    ) -> None:
        self.found, self.values, self.training = found, values, training
        self.world = world or Alone()
        self.device, self.stop, self.kind = device, stop, kind(found)
        self.batch: int = values["batch"]
        self.built = self._built()
        self.model, self.denoiser = self.built.model, self.built.denoiser
        self.cache: Path = typed(values["cache"], "cache")
        self.node = laid_over("dataset", found, values["dataset"])
        self.set = data or assemble.dataset({"dataset": self.node})
        self.drawings: dict[int, Drawing] = {}

    def _built(self) -> Rebuilt:
        values = self.values
        return rebuild(
            self.found,
            sampler=values["sampler"],
            guidance=values["guidance"],
            steps=values["steps"],
            nfe=values["nfe"],
            weights=values["weights"],
            device=self.device,
            network_precision=values["precision"],
            replayed=values["graphs"],
        )

    def data(self, n: int | None, first: int = 0) -> Iterator[Batch]:
        return self._batches(self.set, n, first)

    def held_out(self, n: int) -> Iterator[Batch] | None:
        other = SPLITS.get(self.node.get("split"))
        if other is None:
            return None
        held = assemble.dataset({"dataset": {**self.node, "split": other}})
        return self._batches(held, n, 0)

    def _batches(self, data: Dataset, n: int | None, first: int) -> Iterator[Batch]:
        data.still()
        prepare_like(data, self.found.spec)
        empty = torch.zeros(0, dtype=torch.int64)
        rng = Rng(self.values["seed"], empty).child("eval")
        last = len(data) if n is None else first + n
        for x0, cond, own in once(
            data, first, last, self.batch, rng, self.device, ORDER
        ):
            if self.stop.requested:
                self.stop.end("nothing was kept of this metric")
            yield Batch(x0, cond, own)

    def samples(self, n: int, draw: int = 0) -> Tensor:
        if draw not in self.drawings:
            values = {**self.values, "seed": self.values["seed"] + draw}
            self.drawings[draw] = Drawing(
                self.found,
                self.built,
                values,
                self.device,
                self.stop,
                world=self.world,
            )
        drawing = self.drawings[draw]
        if self.world.agree(len(drawing.gallery.missing(n))):
            drawing.draw(n)
        return torch.cat(list(drawing.gallery.samples(n)))

    def walked(self, walk: Walk) -> Trained:
        path = config.folder() / "sampler" / f"{walk.sampler}.yaml"
        node: Config = {"name": walk.sampler}
        if path.exists():
            node = config.read(path)
        if walk.grid is not None:
            node["grid"] = {"name": walk.grid}
        node, errors = ROLES["sampler"].check(node, "metric.samplers")
        if errors:
            raise errors[0]
        values = {**self.values, "sampler": node, "steps": None, "nfe": walk.nfe}
        return Trained(self.found, values, self.device, self.stop, self.set, self.world)

    def calls(self) -> float:
        return next(iter(self.drawings.values())).calls()

    def classifier(self, run: str | None) -> tuple[Model, str]:
        if run is None:
            made = (self.found, self.cache, self.device, self.stop)
            return self.world.led(lambda: classifier.own(*made))
        return classifier.of(checkpoint.load(run), self.device)

    def metric(self, node: Config) -> Metric:
        """A metric, refused if the process cannot be asked so."""
        demands(node, self.model.process)
        return metrics.build(node, context=self.built.place)

    def measure(self, node: Config) -> Result:
        """One metric, kept beside the weights."""
        metric = self.metric(node)
        self.stop.begin()
        result = metric(self)
        known = {key: value for key, value in result.values.items() if value == value}
        result = replace(result, values=known)  # no standard error of a single sample
        self.world.once(lambda: self._keep(node, result))
        return result

    def forget(self) -> None:
        """Delete the samples: those of a checkpoint that may not stay."""
        for drawing in self.drawings.values():
            shutil.rmtree(drawing.gallery.folder, ignore_errors=True)

    def _keep(self, node: Config, result: Result) -> None:
        """A line of `metrics.jsonl`, a table and pictures."""
        about = {
            **self._way(node),
            "values": dict(result.values),
            "notes": list(result.notes),
            "protocol": result.protocol,
            "step": self.found.step,
            "training": self.training,
        }
        files = self.files(node, result)
        folder = Derived(self.found, self.values["weights"]).folder
        with storage(folder):
            folder.mkdir(parents=True, exist_ok=True)
            _append(folder / "metrics.jsonl", about)
            for path, content in files.items():
                with staged(path) as part:
                    part.write_bytes(content)

    def _way(self, node: Config) -> Config:
        """All that decides the numbers of a metric of these weights."""
        told = ("seed", "weights", "dtype", "label")
        own = {key: self.values[key] for key in told}
        return {"metric": node, "dataset": self.node, **self.built.chosen, **own}

    def files(self, node: Config, result: Result) -> dict[Path, bytes]:
        """Table and pictures of a metric, by a name for each way to measure it."""
        files = dict(result.files)
        if result.table:
            files[f"{node['name']}.csv"] = _csv(result.table)
        folder = Derived(self.found, self.values["weights"]).folder
        text = json.dumps(self._way(node), sort_keys=True)
        tag = hashlib.sha256(text.encode()).hexdigest()[:8]
        named = {folder / name: content for name, content in files.items()}
        return {p.with_stem(f"{p.stem}-{tag}"): c for p, c in named.items()}


def demands(node: Config, process: Process) -> None:
    """Refuse a metric that asks more of a process than it offers."""
    for each in _nested(node):
        name = each["name"]
        fitting.demand("metric", name, metrics[name].needs, process)


def _nested(node: Config) -> Iterator[Config]:
    """A node of a metric, and those of metrics inside it."""
    yield node
    for value in node.values():
        if isinstance(value, dict) and value.get("name") in metrics.names():
            yield from _nested(value)


def _append(log: Path, values: Config) -> None:
    """A line more, and not on the end of one that a killed command left torn."""
    with log.open("a+b") as file:
        end = file.seek(0, os.SEEK_END)
        if end:
            file.seek(end - 1)
        whole = file.read(1) in (b"\n", b"")
        file.write(b"\n" * (not whole) + json.dumps(values).encode() + b"\n")


def _csv(table: Any) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(table[0]))
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue().encode()


def lines(metric: str, values: Mapping[str, float]) -> Iterator[str]:
    """`metric.name  value +- standard error, or spread over seeds`, one in a line."""
    for name, value in values.items():
        if not name.endswith(("_se", "_sd")):
            error, spread = values.get(f"{name}_se"), values.get(f"{name}_sd")
            tail = "" if error is None else f" +- {error:.2g}"
            tail += "" if spread is None else f" +- {spread:.2g} (sd over seeds)"
            label = name if name.startswith(metric) else f"{metric}.{name}"
            yield f"{label:<28} {value:.6g}{tail}"
