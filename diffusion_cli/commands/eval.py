"""`dcli eval`: measure a trained run."""

from __future__ import annotations

import json
import os
from typing import Any

from diffusion_cli import checkpoint, distributed, failpoints
from diffusion_cli import device as devices
from diffusion_cli.errors import ConfigError
from diffusion_cli.evaluation import Trained, lines, several
from diffusion_cli.metrics import Result
from diffusion_cli.stop import Stop
from diffusion_cli.tracking import answer, say

Config = dict[str, Any]


def run(values: Config, overrides: list[str]) -> float | None:
    """Measure; the first number found, for sweeps."""
    failpoints.arm(os.environ.get("DCLI_FAULT"))
    if not values["metric"]:
        raise ConfigError("metric: name at least one", "metric=likelihood")
    with Stop() as stop, distributed.join(values["devices"]) as world:
        found = checkpoint.load(values["ckpt"])
        device = devices.choose(values["device"], world.local)
        nodes = several(values)
        subject = Trained(found, values, device, stop, world=world)
        for node in nodes:
            subject.metric(node)
        devices.tune(device, deterministic=False)
        results = {}
        for node in nodes:
            name = node["name"]
            results[name] = subject.measure(node)
            _tell(node, results[name], subject, quiet=values["json"])
    if values["json"]:
        answer(json.dumps({name: dict(r.values) for name, r in results.items()}))
    first = next(iter(results.values()))
    return next(iter(first.values.values()), None)


def _tell(node: Config, result: Result, subject: Trained, quiet: bool) -> None:
    name = node["name"]
    if not quiet:
        answer("\n".join(lines(name, result.values)))
    for note in result.notes:
        say(f"{name}: {note}")
    for path in subject.files(node, result):
        say(f"{name}: {path}")
