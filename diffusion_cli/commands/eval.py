"""`dcli eval`: measure a trained run."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from diffusion_cli import assemble, checkpoint, failpoints
from diffusion_cli import device as devices
from diffusion_cli.artifact import storage
from diffusion_cli.datasets.storage import staged
from diffusion_cli.derived import Derived
from diffusion_cli.drawing import Drawing
from diffusion_cli.errors import ConfigError
from diffusion_cli.loading import once, prepare_like
from diffusion_cli.metrics import Batch, Result, Subject, metrics
from diffusion_cli.rebuild import Rebuilt, laid_over, rebuild
from diffusion_cli.rng import Rng
from diffusion_cli.stop import Stop
from diffusion_cli.tracking import say

Config = dict[str, Any]


def run(values: Config, overrides: list[str]) -> float | None:
    """Measure; the first number found, for sweeps."""
    failpoints.arm(os.environ.get("DCLI_FAULT"))
    chosen = values["metric"]
    if not chosen:
        raise ConfigError("metric: name at least one", "metric=likelihood")
    with Stop() as stop:
        found = checkpoint.load(values["ckpt"])
        device = devices.choose(values["device"])
        built = rebuild(
            found,
            sampler=values["sampler"],
            guidance=values["guidance"],
            steps=values["steps"],
            nfe=values["nfe"],
            weights=values["weights"],
            device=device,
            network_precision=values["precision"],
        )
        names = [node.get("name") for node in _several(chosen)]
        if twice := [name for name in names if names.count(name) > 1]:
            message = f"metric: `{twice[0]}` is there twice"
            raise ConfigError(message, "one command for each")
        nodes = [_of_size(node, values["n"]) for node in _several(chosen)]
        process = built.model.process
        for node in nodes:
            needs = metrics[node["name"]].needs
            assemble.demand("metric", node["name"], needs, process)
        devices.tune(device, deterministic=False)
        measured = _Measured(found, built, values, device, stop)
        results = {node["name"]: _measure(node, measured) for node in nodes}
    if values["json"]:
        print(json.dumps({name: dict(r.values) for name, r in results.items()}))
    first = next(iter(results.values()))
    return next(iter(first.values.values()), None)


def _several(chosen: Any) -> list[Config]:
    """The nodes of all metrics."""
    nodes = chosen if isinstance(chosen, list) else [chosen]
    if any("name" not in node for node in nodes):
        raise ConfigError("metric: name one", "metric=likelihood; dcli list metric")
    return nodes


def _of_size(node: Config, n: int | None) -> Config:
    return {**node, "n": n} if n is not None and "n" in node else node


def _measure(node: Config, measured: _Measured) -> Result:
    """One metric: computed, told, and kept beside the weights."""
    name = node["name"]
    metric = metrics.build(node, context=measured.built.place)
    measured.stop.begin()
    result = metric(measured)
    known = {key: value for key, value in result.values.items() if value == value}
    result = replace(result, values=known)  # no standard error of a single sample
    if not measured.values["json"]:
        print("\n".join([*_lines(name, result.values), *_table(result.table)]))
    for note in result.notes:
        say(f"{name}: {note}")
    measured.keep(node, result)
    return result


def _lines(metric: str, values: Mapping[str, float]) -> Iterator[str]:
    """`metric.name  value +- standard error`, one value in a line."""
    for name, value in values.items():
        if not name.endswith("_se"):
            error = values.get(f"{name}_se")
            spread = "" if error is None else f" +- {error:.2g}"
            label = name if name.startswith(metric) else f"{metric}.{name}"
            yield f"{label:<28} {value:.6g}{spread}"


def _table(rows: Any) -> Iterator[str]:
    """Rows under their column names."""
    if rows:
        yield "  ".join(f"{key:>12}" for key in rows[0])
    for row in rows:
        yield "  ".join(f"{value:>12.5g}" for value in row.values())


class _Measured(Subject):
    """A checkpoint with its data, and its samples as `dcli sample` would draw them."""

    def __init__(
        self,
        found: checkpoint.Checkpoint,
        built: Rebuilt,
        values: Config,
        device: torch.device,
        stop: Stop,
    ) -> None:
        self.model, self.denoiser, self.device = built.model, built.denoiser, device
        self.found, self.built, self.values, self.stop = found, built, values, stop
        node = laid_over("dataset", found, values["dataset"])
        self.set = assemble.dataset({"dataset": node})
        self.node = node
        self.drawing: Drawing | None = None

    def data(self, n: int, first: int = 0) -> Iterator[Batch]:
        prepare_like(self.set, self.found.spec)
        batch, empty = self.values["batch"], torch.zeros(0, dtype=torch.int64)
        rng = Rng(self.values["seed"], empty).child("eval")
        for x0, cond, own in once(self.set, first, first + n, batch, rng, self.device):
            if self.stop.requested:
                self.stop.end("nothing was kept of this metric")
            yield Batch(x0, cond, own)

    def samples(self, n: int) -> Tensor:
        if self.drawing is None:
            self.drawing = Drawing(
                self.found, self.built, self.values, self.device, self.stop
            )
        self.drawing.draw(n)
        return torch.cat(list(self.drawing.gallery.samples(n)))

    def keep(self, node: Config, result: Result) -> None:
        """A line of `metrics.jsonl` and a table, beside the weights measured."""
        folder = Derived(self.found, self.values["weights"]).folder
        told = ("seed", "weights", "dtype", "label")
        about = {
            "metric": node,
            "values": dict(result.values),
            "notes": list(result.notes),
            "step": self.found.step,
            "dataset": self.node,
            **self.built.chosen,
            **{key: self.values[key] for key in told},
        }
        with storage(folder):
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(about) + "\n")
            if result.table:
                text = io.StringIO()
                writer = csv.DictWriter(text, list(result.table[0]))
                writer.writeheader()
                writer.writerows(result.table)
                with staged(folder / f"{node['name']}.csv") as part:
                    part.write_text(text.getvalue(), encoding="utf-8")
