"""A sample and its loss are functions of its own index, for every formulation there is.

The network is asked in batches of another size, so floats agree but for the last bits;
tokens are the same.
"""

from __future__ import annotations

import pytest
import torch
from choices import options
from formulations import data, parts
from oracles import rows

N, OWN = 5, 3


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
