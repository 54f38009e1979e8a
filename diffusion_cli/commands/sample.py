"""`dcli sample`: draw from a checkpoint; nothing else is needed."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from diffusion_cli import checkpoint, failpoints
from diffusion_cli import device as devices
from diffusion_cli.datasets import datasets
from diffusion_cli.errors import CheckpointError, NumericsError
from diffusion_cli.gallery import Gallery
from diffusion_cli.rebuild import Rebuilt, labels, rebuild
from diffusion_cli.registry import near
from diffusion_cli.rng import Rng
from diffusion_cli.stop import Stop
from diffusion_cli.tracking import say
from diffusion_cli.trainer import memory

Config = dict[str, Any]


def run(values: Config, overrides: list[str]) -> float | None:
    """Draw samples; the network calls that each of them takes."""
    failpoints.arm(os.environ.get("DCLI_FAULT"))
    with Stop() as stop:
        found = checkpoint.load(values["ckpt"])
        kind = _dataset(found)
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
        classes = labels(values["label"], found.spec, found.config)
        devices.tune(device, deterministic=False)
        request = _request(found, values, built, device)
        folder = _folder(found, values, request)
        gallery = Gallery(folder, kind, found.spec, values["batch"], request)
        drawing = _Drawing(built, gallery, values, classes, device, stop)
        return drawing.run(found)


def _dataset(found: checkpoint.Checkpoint) -> Any:
    """The class of the data the model was trained on; the data itself is not opened."""
    node = found.config.get("dataset")
    name = node.get("name") if isinstance(node, dict) else None
    if name not in datasets.names():
        message = f"{found.folder}: uses dataset `{name}`, which is not installed"
        hint = f"plugins=[...]{near(str(name), datasets.names())}"
        raise CheckpointError(message, hint, "CKPT-PLUGIN")
    return datasets[name]


def _request(
    found: checkpoint.Checkpoint, values: Config, built: Rebuilt, device: torch.device
) -> Config:
    """All that decides the bits of a sample, as JSON would read it back."""
    keys = ("seed", "label", "batch", "weights", "dtype", "precision")
    request = {key: values[key] for key in keys} | built.chosen
    request |= {"checkpoint": found.hash, "device": device.type}
    return json.loads(json.dumps(request))  # type: ignore[no-any-return]


def _folder(found: checkpoint.Checkpoint, values: Config, request: Config) -> Path:
    """`out`, else a folder in the run named by the request."""
    if values["out"]:
        return Path(values["out"]).expanduser()
    text = json.dumps(request, sort_keys=True)
    tag = hashlib.sha256(text.encode()).hexdigest()[:8]
    sampler = request["sampler"]
    inside = found.folder.parent.name == "checkpoints"
    home = found.folder.parent.parent if inside else found.folder
    return home / "samples" / f"{sampler['name']}-{sampler['steps']}-{tag}"


class _Drawing:
    """One request: whole chunks, drawn in order, whatever `n` is."""

    def __init__(
        self,
        built: Rebuilt,
        gallery: Gallery,
        values: Config,
        classes: list[int] | None,
        device: torch.device,
        stop: Stop,
    ) -> None:
        self.built, self.gallery, self.values = built, gallery, values
        self.classes, self.device, self.stop = classes, device, stop
        self.dtype = getattr(torch, values["dtype"])
        self.rows_seen = 0
        built.model.network.register_forward_hook(self._count)

    def run(self, found: checkpoint.Checkpoint) -> float:
        """Draw what is missing, write what was asked for, say what it took."""
        n, batch, sampler = self.values["n"], self.values["batch"], self.built.sampler
        chunks = self.gallery.missing(n)
        filmed = self.values["trajectory"]
        if filmed and 0 not in chunks:
            chunks = [0, *chunks]
        total = -(-n // batch)
        self._introduce(found, len(chunks), total)
        self.stop.begin()
        steps = len(chunks) * sampler.steps
        with tqdm(total=steps, unit="step", disable=None, dynamic_ncols=True) as bar:
            for chunk in chunks:
                x, states = self._chunk(chunk, bar, bool(filmed) and chunk == 0)
                self.gallery.keep(chunk, x)
                if states:
                    self.gallery.film(states, filmed)
        formats = self.values["format"]
        formats = formats if isinstance(formats, list) else [formats]
        self.gallery.export(n, formats, self._labels(torch.arange(n)))
        calls = self.rows_seen / (len(chunks) * batch) if chunks else self._expected()
        self.gallery.describe(
            {
                "checkpoint": str(found.folder),
                "step": found.step,
                "weights": found.hash,
                "n": n,
                "network_calls_per_sample": calls,
                **self.built.chosen,
                **{k: self.values[k] for k in ("seed", "label", "batch", "dtype")},
            }
        )
        say(f"{n} samples, {sampler.steps} steps, {calls:g} network calls each")
        print(self.gallery.folder)
        return calls

    def _introduce(self, found: checkpoint.Checkpoint, todo: int, total: int) -> None:
        walk = self.built.chosen["sampler"]["name"]
        where = devices.label(self.device)
        say(f"{found.folder} ({self.values['weights']} weights), {walk}, {where}")
        if todo < total:
            done = min((total - todo) * self.values["batch"], self.values["n"])
            say(f"{done}/{self.values['n']} already done")

    def _chunk(self, chunk: int, bar: Any, filmed: bool) -> tuple[Tensor, list[Tensor]]:
        """The samples of one chunk, padded to `batch`, and its states if filmed."""
        batch, spec = self.values["batch"], self.built.model.spec
        process = self.built.model.process
        rows = torch.arange(chunk * batch, (chunk + 1) * batch, device=self.device)
        rng = Rng(self.values["seed"], rows).child("sample")
        label = self._labels(rows)
        cond = {} if label is None else {"label": label}
        denoiser = self.built.denoiser.given(**cond)
        x = process.prior((batch, *process.state(spec).shape), rng)
        x = x.to(self.dtype) if x.is_floating_point() else x
        states = [self.gallery.shown(x)] if filmed else []
        fewer = max(1, batch // 2)
        with memory(f"sample: batch={batch}", f"batch={fewer}"):
            walk = self.built.sampler.trajectory(denoiser, x, rng)
            for x in walk:
                if self.stop.requested:
                    self.stop.end("the same command continues")
                if filmed:
                    states.append(self.gallery.shown(x))
                bar.update()
        if x.is_floating_point() and not bool(x.isfinite().all()):
            name = self.built.chosen["sampler"]["name"]
            message = f"sample: NONFINITE: sampler `{name}` left the finite numbers"
            raise NumericsError(message, "steps=<more>, or precision=fp32", "NONFINITE")
        return x.float() if x.is_floating_point() else x, states

    def _labels(self, rows: Tensor) -> Tensor | None:
        """The class of every sample: a function of (seed, i), or what was asked for."""
        spec = self.built.model.spec
        if not spec.classes:
            return None
        if self.classes is None:
            rng = Rng(self.values["seed"], rows).child("label")
            return rng.integers(spec.classes, (len(rows),))
        wanted = torch.tensor(self.classes, device=rows.device)
        return wanted[rows % len(wanted)]

    def _count(self, network: Any, inputs: tuple[Tensor, ...], out: Tensor) -> None:
        self.rows_seen += len(inputs[0])

    def _expected(self) -> float:
        """Calls per sample of an earlier run, as its `about.json` says."""
        about = self.gallery.folder / "about.json"
        if about.exists():
            return float(json.loads(about.read_text())["network_calls_per_sample"])
        return float(self.built.sampler.calls(self.built.sampler.steps))
