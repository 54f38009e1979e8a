"""`dcli fit`: find what belongs to the weights of a run, and keep it beside them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from diffusion_cli import assemble, checkpoint, failpoints, fitting
from diffusion_cli import device as devices
from diffusion_cli.datasets import Dataset
from diffusion_cli.denoiser import Model
from diffusion_cli.derived import Derived
from diffusion_cli.device import memory
from diffusion_cli.errors import ConfigError
from diffusion_cli.loading import once, prepare_like
from diffusion_cli.paths import assignment
from diffusion_cli.place import trained
from diffusion_cli.processes.affine import Diffusion
from diffusion_cli.rebuild import laid_over
from diffusion_cli.rng import Rng
from diffusion_cli.stop import Stop
from diffusion_cli.tracking import say
from diffusion_cli.variance import Fit, Moments, known_times

Config = dict[str, Any]


def run(values: Config, overrides: list[str]) -> float | None:
    """Fit, and keep what was found under the weights."""
    failpoints.arm(os.environ.get("DCLI_FAULT"))
    with Stop() as stop:
        found = checkpoint.load(values["ckpt"])
        device = devices.choose(values["device"])
        model = trained(found, values["weights"], device, values["precision"])
        if model.parametrisation.about != "x0":
            message = f"ckpt: {found.home} is a classifier; it has no variance to fit"
            raise ConfigError(message, "name a run that draws")
        name = values["variance"]
        fitting.demand("variance", name, Diffusion, model.process)
        devices.tune(device, deterministic=False)
        node = laid_over("dataset", found, values["dataset"])
        data = assemble.dataset({"dataset": node})
        prepare_like(data, found.spec)
        derived = Derived(found, values["weights"])
        told = ("variance", "n", "times", "seed", "batch", "precision")
        about = {key: values[key] for key in told} | {"dataset": node}
        about |= {"step": found.step, "data": f"{len(data)} {data.fingerprint}"}
        say(f"{found.folder} ({values['weights']} weights), {devices.label(device)}")
        if derived.holds(name, about):
            say("already fitted")
        else:
            fit = _fit(model, data, values, device, stop)
            derived.write(name, fit.tensors(), about)
    words = [assignment("ckpt", str(found.home)), f"guidance={name}"]
    words += [f"weights={values['weights']}"] * (values["weights"] != "ema")
    say(" ".join(["dcli sample", *words, "sampler=ancestral"]))
    print(derived.folder / name)
    return None


def _fit(
    model: Model, data: Dataset, values: Config, device: torch.device, stop: Stop
) -> Fit:
    """Two passes over the data: their moments, then the errors at every time."""
    assert isinstance(model.process, Diffusion)
    times = known_times(model.process, values["times"])
    moments = Moments()
    for x0, _, _ in _batches(data, values, device):
        moments.add(x0)
    say(f"{moments.count} data at {len(times)} times")
    fit = Fit(model, times, moments)
    stop.begin()
    batch = values["batch"]
    total = -(-moments.count // batch) * len(times)
    hint = f"batch={max(1, batch // 2)}"
    with (
        tqdm(total=total, unit="call", disable=None, dynamic_ncols=True) as bar,
        memory(f"fit: batch={batch}", hint),
    ):
        for x0, cond, rng in _batches(data, values, device):
            for _ in fit.add(x0, rng, **cond):
                bar.update()
                if stop.requested:
                    stop.end("nothing was kept")
    return fit


def _batches(
    data: Dataset, values: Config, device: torch.device
) -> Iterator[tuple[Tensor, dict[str, Tensor], Rng]]:
    """Every sample once, up to `n` of them, in a fixed random order."""
    rng = Rng(values["seed"], torch.zeros(0, dtype=torch.int64)).child("fit")
    return once(data, 0, values["n"], values["batch"], rng, device)
