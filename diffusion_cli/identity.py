"""Which run a config is: what decides its result, hashed, and where its folder lies."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusion_cli.paths import typed

# Keys that say how a run is executed, not which run it is: free to change at a resume.
EXECUTION = (
    "out",
    "name",
    "every",
    "device",
    "dataset.root",
    "dataset.cache",
    "trainer.devices",
    "trainer.micro_batch",
    "trainer.recompute",
    "trainer.compile",
    "trainer.skip_nonfinite",
    "trainer.time_limit",
    "trainer.workers",
    "plugins",
    "fresh",
    "tries",
    "checkpoint",
    "metric",
    "features",
    "evaluation",
)

# Keys of a data set that change neither its samples nor what measures them.
PLACES = ("root", "cache", "flip")


def same_data(node: Mapping[str, Any]) -> dict[str, Any]:
    """A data set's node as numbers are compared: with what decides the samples."""
    return {k: v for k, v in node.items() if k not in (*PLACES, "labels")}


def dotted(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested config as a flat one: `{"trainer.steps": 100}`."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        nested = isinstance(value, Mapping) and value
        name = f"{prefix}{key}"
        flat |= dotted(value, f"{name}.") if nested else {name: value}
    return flat


def decides(key: str) -> bool:
    """Whether a key says which run it is, not how it is executed."""
    return not any(key == name or key.startswith(f"{name}.") for name in EXECUTION)


def identity(config: Mapping[str, Any]) -> str:
    """Eight hexadecimal digits of a checked config, execution keys left out."""
    kept = {
        key: _canonical(value) for key, value in dotted(config).items() if decides(key)
    }
    text = json.dumps(kept, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _canonical(value: Any) -> Any:
    """1.0 is 1, whichever of them a signature's default says."""
    if isinstance(value, list):
        return [_canonical(item) for item in value]
    whole = isinstance(value, float) and value.is_integer()
    return int(value) if whole else value


def run_folder(config: Mapping[str, Any]) -> Path:
    """`out`, else `runs/<name>-<id>` under the current directory."""
    if config["out"]:
        return typed(config["out"], "out")
    name = config["name"] or f"{config['dataset']['name']}-{config['process']['name']}"
    return Path("runs") / f"{name}-{identity(config)}"


def title(choices: Mapping[str, str]) -> str:
    """The name of a run: the chosen experiment's, else those of data and process."""
    words = [choices["exp"]] if "exp" in choices else []
    words = words or [choices[key] for key in ("dataset", "process") if key in choices]
    return "-".join(re.sub(r"[^A-Za-z0-9._-]+", "-", word).strip("-") for word in words)
