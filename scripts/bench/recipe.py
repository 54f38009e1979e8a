"""The config of `dcli train +exp=ddpm_cifar` where Hydra may be missing.

The same files, read and laid over each other in the order that Hydra would choose.
"""

from __future__ import annotations

import re
from typing import Any

import yaml
from peers import ROOT

Config = dict[str, Any]
SHAPE = (3, 32, 32)
ROLES = {
    "network": "unet",
    "parametrisation": "eps",
    "objective": "simple",
    "coupling": "independent",
    "optimizer": "adam",
    "sampler": "ddim",  # the recipe's own is the same with eta = 1 and 1000 steps
}
SMALL: Config = {"channels": 32, "multipliers": [1, 1, 1, 1], "attention": []}


class _Loader(yaml.SafeLoader):
    """2e-4 is a number, as it is for Hydra."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+"),
    list("-+0123456789"),
)


def read(name: str) -> Config:
    """One file of `configs/` without what it selects, or tells Hydra."""
    text = (ROOT / "configs" / f"{name}.yaml").read_text()
    found = yaml.load(text, _Loader)
    return {k: v for k, v in found.items() if k not in ("defaults", "hydra")}


def recipe(small: bool = False, **trainer: Any) -> Config:
    """The config of the recipe.

    Args:
        small: With a network for a CPU.
        trainer: Other keys of `trainer`.
    """
    values = read("train")
    values |= {role: read(f"{role}/{name}") for role, name in ROLES.items()}
    values |= read("process/ddpm") | {"guidance": [], "metric": [], "features": None}
    for key, over in read("exp/ddpm_cifar").items():
        values[key] = values.get(key, {}) | over
    values["trainer"] |= trainer
    values["evaluation"]["cache"] = "~/.cache/dcli"  # else the environment's
    if small:
        values["network"] |= SMALL
    return values
