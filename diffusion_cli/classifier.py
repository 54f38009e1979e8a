"""A small classifier of a run's data, trained once for all runs on them."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from diffusion_cli import assemble, checkpoint, loading
from diffusion_cli.checkpoint import Checkpoint
from diffusion_cli.datasets import Dataset
from diffusion_cli.datasets.storage import build_once
from diffusion_cli.denoiser import Model
from diffusion_cli.errors import ConfigError
from diffusion_cli.identity import PLACES
from diffusion_cli.place import stored, trained
from diffusion_cli.registry import ROLES
from diffusion_cli.settings import TrainerSettings
from diffusion_cli.stop import Stop
from diffusion_cli.tracking import say
from diffusion_cli.trainer import Trainer

Config = dict[str, Any]
STEPS, BATCH = 1000, 64
RECIPE: Config = {
    "process": {"name": "gaussian", "schedule": {"name": "karras"}},
    "parametrisation": {"name": "classes"},
    # a little noise, sigma around 0.05, so that it does not hang on single pixels
    "objective": {
        "name": "classify",
        "time": {"name": "lognormal", "mean": -3.0, "std": 1.0},
    },
    "coupling": {"name": "independent"},
    "optimizer": {"name": "adamw", "lr": 2e-3, "weight_decay": 0.05},
    "seed": 0,
}
IMAGES: Config = {"name": "encoder"}
POINTS: Config = {"name": "mlp", "width": 128, "depth": 2}


def own(
    found: Checkpoint, cache: Path, device: torch.device, stop: Stop
) -> tuple[Model, str]:
    """The classifier of a run's training data, and a name for its weights.

    What decides it (data, recipe) names its folder in the cache: the same data are
    never learnt twice, and others never share it.
    """
    node = stored(found, "dataset", found.config.get("dataset"))
    if "labels" in node:
        node = {**node, "labels": True}
    data = assemble.dataset({"dataset": node})
    data.prepare()
    if data.spec.classes < 2:
        message = "features: `classifier` needs labels; the data have none"
        raise ConfigError(message, "features=inception, or features.run=<a classifier>")
    config = _config(node, data)
    text = json.dumps([_deciding(config), len(data), data.fingerprint], sort_keys=True)
    tag = hashlib.sha256(text.encode()).hexdigest()[:12]

    def build(folder: Path) -> None:
        _train(folder, config, data, device, stop)

    place = build_once(cache / "classifiers" / f"{node['name']}-{tag}", build)
    return of(checkpoint.load(next(place.glob("step_*"))), device)


def of(found: Checkpoint, device: torch.device) -> tuple[Model, str]:
    """A trained classifier, and a name for its weights."""
    averaged = any(name.startswith("ema-") for name in found.files)
    # float32 everywhere: the numbers of two machines are compared
    model = trained(found, "ema" if averaged else "raw", device, "fp32")
    if model.parametrisation.about != "label":
        message = f"features.run: {found.home} tells x_0, not labels"
        hint = "dcli train ... objective=classify parametrisation=classes"
        raise ConfigError(message, hint)
    return model, found.hash[:8]


def _config(node: Mapping[str, Any], data: Dataset) -> Config:
    """The config of its run, checked and complete."""
    network = IMAGES if len(data.spec.shape) == 3 else POINTS
    config: Config = {**copy.deepcopy(RECIPE), "network": network, "dataset": node}
    for role in (*RECIPE, "network"):
        if role in ROLES:
            config[role], errors = ROLES[role].check(config[role], role)
            assert not errors, errors
    return config


def _deciding(config: Config) -> Config:
    node = {k: v for k, v in config["dataset"].items() if k not in PLACES}
    return {**config, "dataset": node, "steps": STEPS, "batch": BATCH}


def _train(
    folder: Path, config: Config, data: Dataset, device: torch.device, stop: Stop
) -> None:
    """Train it and leave a checkpoint in `folder`."""
    say(f"features: training a classifier of {config['dataset']['name']}, once")
    model = assemble.model(config, data.spec)
    objective = assemble.objective(config, model.process, data.spec)
    settings = TrainerSettings(
        steps=STEPS, batch=BATCH, precision="fp32", warmup=50, decay="cosine", ema=()
    )
    trainer = Trainer(
        settings, optimizer=config["optimizer"], seed=config["seed"], device=device
    )
    state = trainer.start(model, objective)
    batches = loading.batches(
        data,
        seed=config["seed"],
        first=0,
        last=STEPS,
        batch=BATCH,
        micro_batch=BATCH,
        device=device,
        workers=0,
    )
    stop.begin()
    with tqdm(total=STEPS, desc="classifier", disable=None, leave=False) as bar:
        for _ in trainer.run(state, batches):
            bar.update()
            if stop.requested:
                stop.end("nothing was kept of the classifier")
    trainer.check(state)
    about = {"config": config, "data": data.spec.plain()}
    checkpoint.save(folder, STEPS, state.tensors(), {}, about)
