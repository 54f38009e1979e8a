"""Every formulation there is, around a small network, and data for it."""

from __future__ import annotations

from typing import Any

import torch
from choices import formulation, node
from oracles import rows

from diffusion_cli import assemble, config
from diffusion_cli.core import Spec
from diffusion_cli.processes import processes

IMAGES = Spec((3, 6, 4))
TOKENS = Spec((6,), "tokens", vocab=4)
FEW = {"d3pm": {"levels": 20, "beta_max": 4.0}}
SIZES = {
    "continuous": {"name": "mlp", "width": 16, "depth": 1, "fourier": 0},
    "tokens": {"name": "token_transformer", "depth": 1, "width": 8, "heads": 2},
}


def parts(process: str, **changes: Any) -> tuple[assemble.Parts, Spec]:
    """The partners that a process selects, or others, around a small network."""
    values: dict[str, Any] = formulation(process) | changes
    values["process"] = {**values["process"], **FEW.get(process, {})}
    kind = processes[values["process"]["name"]].kind
    network, _ = config.roles()["network"].check(SIZES[kind], "network")
    values |= {
        "seed": 0,
        "dataset": {"name": "image_folder" if kind == "continuous" else "text"},
        "coupling": node("coupling", "independent"),
        "network": network,
        "guidance": [],
    }
    if "steps" in values["sampler"]:
        values["sampler"] = {**values["sampler"], "steps": 4}
    spec = TOKENS if kind == "tokens" else IMAGES
    built = assemble.parts(values, spec)
    built.model.process.fit(iter([data(spec, 16)]))
    for weight in built.model.parameters():  # also those that start at zero
        if weight.requires_grad:
            torch.nn.init.normal_(weight, std=0.1, generator=torch.Generator())
    return built, spec


def data(spec: Spec, count: int) -> torch.Tensor:
    shape = (count, *spec.shape)
    if spec.kind == "tokens":
        return rows(count, 1).integers(spec.vocab, shape)
    return rows(count, 1).normal(shape) / 2
