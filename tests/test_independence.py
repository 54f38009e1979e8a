"""A sample and its loss are functions of its own index, for every formulation there is.

The network is asked in batches of another size, so floats agree but for the last bits;
tokens are the same.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from choices import formulation, node, options
from oracles import rows

from diffusion_cli import assemble, config
from diffusion_cli.core import Spec
from diffusion_cli.processes import processes

N, OWN = 5, 3
IMAGES = Spec((3, 6, 4))
TOKENS = Spec((6,), "tokens", vocab=4)
FEW = {"d3pm": {"levels": 20, "beta_max": 4.0}}
SIZES = {
    "continuous": {"name": "mlp", "width": 16, "depth": 1, "fourier": 0},
    "tokens": {"name": "token_transformer", "depth": 1, "width": 8, "heads": 2},
}


def parts(process: str) -> tuple[assemble.Parts, Spec]:
    """The partners that a process selects, around a small network."""
    values: dict[str, Any] = formulation(process)
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


def assert_same(one: torch.Tensor, other: torch.Tensor) -> None:
    if one.is_floating_point():
        scale = float(other.abs().max()) + 1
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * scale)
    else:
        assert torch.equal(one, other)


@pytest.mark.parametrize("process", options("process"))
def test_a_sample_belongs_to_its_index(process: str) -> None:
    built, spec = parts(process)
    shape = built.model.process.state(spec).shape
    seen = rows(N).child("sample")

    def drawn(index: torch.Tensor) -> torch.Tensor:
        rng = seen.of(index)
        x = built.model.process.prior((len(index), *shape), rng)
        with torch.no_grad():
            *_, x = built.sampler.trajectory(built.denoiser, x, rng)
        return x

    whole = drawn(torch.arange(N))
    assert_same(drawn(torch.tensor([OWN])), whole[OWN : OWN + 1])
    assert_same(drawn(torch.arange(N).flip(0)).flip(0), whole)
    assert len(whole.unique(dim=0)) == N


@pytest.mark.parametrize("process", options("process"))
def test_a_loss_belongs_to_its_index(process: str) -> None:
    built, spec = parts(process)
    x0, seen = data(spec, N), rows(N).child("train").at(7)
    common = built.objective.reference  # what all samples of a step are seen beside
    beside = {"reference": data(spec, common)} if common else {}

    def losses(index: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return built.objective(built.model, x0[index], seen.of(index), **beside)

    whole = losses(torch.arange(N))
    assert_same(losses(torch.tensor([OWN])), whole[OWN : OWN + 1])
    assert len(whole.unique()) > 1
