"""Losses, guidance and the metric of tokens."""

from __future__ import annotations

import math

import pytest
import torch
from measured import Stub
from oracles import Known, number, rows
from token_oracles import Table, build, entropy, table
from token_parts import EVERY

from diffusion_cli.core import Spec
from diffusion_cli.couplings import couplings
from diffusion_cli.denoiser import Model
from diffusion_cli.guidance import guidances
from diffusion_cli.metrics import metrics
from diffusion_cli.networks import Network
from diffusion_cli.objectives import objectives
from diffusion_cli.parametrisations import parametrisations
from diffusion_cli.rng import Rng
from diffusion_cli.samplers import samplers

UNIFORM = {"name": "uniform"}


# losses and the metric


class Fixed(Network):
    """Logits that do not look at the state."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(logits)

    def forward(self, x, level, label=None, extra=None):  # type: ignore[no-untyped-def]
        return self.logits.expand(len(x), *self.logits.shape)


def unigram(process: str, logits: torch.Tensor) -> Model:
    reading = "subs" if process in ("mask", "mask_count") else "logits"
    more = torch.cat((logits, torch.zeros(1)))
    built = build(process, len(logits), 6)
    own = more if process in ("mask", "mask_count") else logits
    spec = Spec((6,), "tokens", vocab=len(logits))
    net = Fixed(own.expand(6, -1).clone())
    return Model(built, net, parametrisations.build({"name": reading}), spec)


@pytest.mark.parametrize("process", EVERY)
def test_the_loss_is_finite_differentiable_and_its_mean_the_bound(process: str) -> None:
    model = unigram(process, torch.tensor([0.2, -0.4, 0.9]))
    time = {"name": "uniform", "stratified": True}
    own = {"coupling": couplings.build({"name": "independent"})}
    law = objectives.build({"name": "token_bound", "time": time, "ce": 0.0}, **own)
    n = 20_000
    x0 = Rng(1, torch.arange(n)).integers(3, (n, 6))
    losses = law(model, x0, rows(n))
    assert losses.shape == (n,) and losses.dtype == torch.float32
    losses.mean().backward()
    gradient = model.network.logits.grad
    assert gradient.isfinite().all() and gradient.abs().sum() > 0
    if process in ("mask", "mask_count"):  # whatever is visible: the unigram's surprise
        surprise = -model.network.logits[:, :3].log_softmax(-1).mean()
        error = 5 * float(losses.std()) / n**0.5
        assert float(losses.mean()) == pytest.approx(float(surprise), abs=error + 2e-3)
    mixed = objectives.build({"name": "token_bound", "time": time, "ce": 0.5}, **own)
    again = mixed(model, x0, rows(n))
    assert bool((again >= losses).all() and (again > losses).any())


def measured(known: Table, n: int) -> Stub:
    """Data drawn from a table, and a model that knows the table."""
    pick = Rng(5, torch.arange(n)).uniform((n, 1))
    which = (known.p.cumsum(0) <= pick).sum(1).clamp(max=len(known.p) - 1)
    spec = Spec((known.process.length,), "tokens", vocab=known.process.vocab)
    return Stub(known, known.data[which], spec=spec, batch=n)


@pytest.mark.parametrize("process", EVERY)
def test_nelbo_of_the_exact_belief_is_the_entropy_of_the_data(process: str) -> None:
    """T7.3 through the metric: within five standard errors, above by what is known."""
    p, n = table(3, 2, seed=2), 1500
    own = {"levels": 20, "beta_max": 4.0} if process == "d3pm" else {}
    known = Table(process, build(process, 3, 2, **own), p)
    metric = metrics.build({"name": "nelbo", "n": n, "times": 4}, context=None)
    values = metric(measured(known, n)).values
    bits = entropy(p) / (2 * math.log(2))
    error = 5 * values["bits_per_token_se"]
    # two tokens change at once in a discrete step; the prior of edit costs log2(3/2)
    above = {"d3pm": 0.15, "edit": math.log2(1.5), "mask": 2e-3, "uniform": 5e-3}
    found = values["bits_per_token"]
    assert bits - error <= found <= bits + above.get(process, 0.0) + error
    assert values["perplexity"] == pytest.approx(2**found)


def test_the_times_of_nelbo_are_even_over_samples_and_within_each() -> None:
    seen, n = [], 60

    class Watched(Table):
        def forward(self, x, t, **cond):  # type: ignore[no-untyped-def]
            seen.append(t)
            return super().forward(x, t)

    process = build("mask", 3, 2)
    low, high = process.span
    metric = metrics.build({"name": "nelbo", "n": n, "times": 4}, context=None)
    metric(measured(Watched("mask", process, table(3, 2, seed=2)), n))
    *within, last = seen
    assert bool((last == low).all()) and len(within) == 4  # the decoder's
    u = (torch.stack(within) - low) / (high - low)
    quarters = torch.arange(4).double()[:, None] / 4
    torch.testing.assert_close((u - u[0]) % 1, quarters.expand(4, n))
    places = u[0].sort().values
    gaps = torch.cat((places, places[:1] + 1)).diff()  # around the circle
    assert float(gaps.max()) < 3 / n  # of the golden ratio; of chance, about 5 / n


# guidance


class Reading(Known):
    """A context that reads digits as tokens."""

    def prompt(self, text: str, mask: str) -> torch.Tensor:
        return torch.tensor([-1 if c == mask else int(c) for c in text])


def test_infilling_is_exact_conditioning_of_masked_tokens() -> None:
    """First-hitting from a prompt, against the table's own conditional law."""
    process, n, p = build("mask", 2, 3), 8000, table(2, 3, seed=4)
    exact = Table("mask", process, p)
    guide = guidances.build(
        {"name": "infill", "prompt": "_1_"}, denoiser=exact, context=Reading()
    )
    assert guide.timeless
    walk = samplers.build({"name": "first_hitting"})
    *_, x = walk.trajectory(guide, process.prior((n, 3), rows(n)), rows(n))
    assert bool((x[:, 1] == 1).all()) and exact.calls == 2  # the prompt takes none
    sure = guide(torch.tensor([[2, 2, 2]]), number(1.0)).mean[0, 1]
    assert sure.tolist() == [0, 1]
    fits = exact.data[:, 1] == 1
    law = p[fits] / p[fits].sum()
    found = torch.stack([(x == row).all(1).double().mean() for row in exact.data[fits]])
    assert bool(((found - law).abs() < 5 * (law * (1 - law) / n).sqrt()).all())


@pytest.mark.parametrize("process", EVERY)
def test_a_prompt_stays_fixed_whatever_spoils_tokens(process: str) -> None:
    built = build(process)
    guide = guidances.build(
        {"name": "infill", "prompt": "2*0", "mask": "*"},
        denoiser=Table(process, built, table()),
        context=Reading(),
    )
    node = {"name": "ancestral", "steps": built.levels or 20, "grid": UNIFORM}
    walk = samplers.build(node)
    *_, x = walk.trajectory(guide, built.prior((40, 3), rows(40)), rows(40))
    assert bool((x[:, 0] == 2).all() and (x[:, 2] == 0).all())
    assert len(x[:, 1].unique()) == 3
