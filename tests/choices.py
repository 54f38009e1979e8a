"""Config groups as nodes, for tests that run over everything there is."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from diffusion_cli import config


def options(role: str) -> list[str]:
    """The yaml files of a group."""
    return sorted(path.stem for path in (config.folder() / role).glob("*.yaml"))


@lru_cache
def node(role: str, name: str) -> dict[str, Any]:
    """The body of one choice, with the class's defaults filled in."""
    body = config.read(config.folder() / role / f"{name}.yaml")
    body.pop("defaults", None)
    body = body.get(role, body)
    checked, errors = config.roles()[role].check(body, role)
    assert not errors
    return checked


def formulation(process: str) -> dict[str, Any]:
    """A process with the parts that its yaml selects."""
    body = config.read(config.folder() / "process" / f"{process}.yaml")
    chosen = {"process": node("process", process)}
    for entry in body["defaults"]:
        if isinstance(entry, dict):
            ((group, name),) = entry.items()
            chosen[group.strip("/")] = node(group.strip("/"), name)
    return chosen


def fitting_data(process: str) -> str:
    """The yaml of a data set that a process can spoil, if not every one will do."""
    kind = config.roles()["process"][node("process", process)["name"]].kind
    if process == "cold_desaturate":
        return "cifar10"  # three channels
    return "digit_tokens" if kind == "tokens" else "digits"
