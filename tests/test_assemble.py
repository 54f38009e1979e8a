"""Every combination of parts either fits or is refused with what would fit."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from choices import node, options

from diffusion_cli import assemble, config
from diffusion_cli.core import Spec
from diffusion_cli.errors import ConfigError
from diffusion_cli.rng import Rng
from diffusion_cli.settings import TrainerSettings
from diffusion_cli.trainer import Trainer

SPEC = Spec((2,), classes=2)
ROLES = ("process", "parametrisation", "objective", "sampler")
Choice = tuple[str, ...]


def composed(choice: Choice) -> dict[str, Any]:
    parts = {role: node(role, name) for role, name in zip(ROLES, choice, strict=True)}
    small = {"width": 16, "depth": 1, "fourier": 0}
    network, _ = config.roles()["network"].check({"name": "mlp", **small}, "network")
    return parts | {
        "seed": 0,
        "dataset": {"name": "toy2d"},
        "coupling": {"name": "independent"},
        "network": network,
        "guidance": [],
    }


# Choices that live on images, tokens or fields: the tests of their rooms hold them.
ELSEWHERE = {
    "process": {
        *("cold_blur", "cold_desaturate", "cold_fade", "cold_mask", "cold_pixelate"),
        *("d3pm", "edit", "mask", "mask_count", "uniform"),
        *("idempotent", "pfgm", "pfgmpp", "radial"),
    },
    "parametrisation": {"clean", "direct", "field", "logits", "subs"},
    "objective": {
        "consistency",
        "cross_entropy",
        "idempotent",
        "poisson_batch",
        "token_bound",
        "token_hybrid",
    },
    "sampler": {
        "cached",
        "confident",
        "first_hitting",
        "improved",
        "ln_z",
        "one_step",
        "tokens",
    },
}


def here(role: str) -> list[str]:
    """The options of a role that are tested here."""
    return [name for name in options(role) if name not in ELSEWHERE[role]]


TRAINED: list[Choice] = list(itertools.product(*map(here, ROLES[:3])))
WALKED: list[Choice] = list(itertools.product(here("process"), here("sampler")))


def refused(choice: Choice) -> str:
    """The message of a refusal, or nothing: by the theory, not by the code."""
    process, reading, objective, *sampler = choice
    variances = ("learned", "npr", "sn")
    if reading in ("eps", "score", *variances) and ends_without_signal(process):
        return "is undefined at t = 1"
    if (reading == "classes") != (objective == "classify"):
        return f"objective: `{node('objective', objective)['name']}` teaches the"
    if objective == "hybrid" and reading not in variances:
        return "`hybrid` trains a variance, which only"
    if objective == "second_moment" and reading not in ("npr", "sn"):
        return "`second_moment` trains a second moment, which only"
    if reading in variances and objective not in ("hybrid", "vlb", "second_moment"):
        return f"`{node('objective', objective)['name']}` trains no variance"
    return impassable((process, *sampler)) if sampler else ""


def ends_without_signal(process: str) -> bool:
    return process in ("flow", "trigonometric")


def impassable(choice: Choice) -> str:
    """Why a sampler cannot walk a process, or nothing."""
    process, sampler = choice
    # g, the step of reverse diffusion and sigma / alpha are infinite at alpha = 0
    infinite = ("euler_maruyama", "reverse_diffusion", "pc", "annealed_langevin")
    if sampler in infinite and ends_without_signal(process):
        return "at the first time, where alpha = 0"
    discrete = process in ("ddpm", "cosine")
    assert not discrete or node("sampler", sampler).get("steps", 0) <= 1000
    return ""


def test_training_fits_or_is_refused_with_a_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every process with every parametrisation and objective."""
    legal = fitting([(*choice, "ancestral") for choice in TRAINED], monkeypatch)
    assert 100 < legal < len(TRAINED)


def test_sampling_fits_or_is_refused_with_a_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every process with every sampler, as every reading returns the same beliefs."""
    legal = fitting([(p, "x0", "simple", s) for p, s in WALKED], monkeypatch)
    assert 100 < legal < len(WALKED)


def fitting(choices: list[Choice], monkeypatch: pytest.MonkeyPatch) -> int:
    """How many of the choices are legal; the others are refused as foretold."""
    network = assemble.networks.build(
        composed(choices[0])["network"], state=SPEC, out=SPEC.shape
    )
    monkeypatch.setattr(assemble.networks, "build", lambda *_, **__: network)
    legal = 0
    for choice in choices:
        reason = refused(choice)
        if reason:
            with pytest.raises(ConfigError) as caught:
                assemble.parts(composed(choice), SPEC)
            assert reason in caught.value.render(), choice
            assert "hint:" in caught.value.render(), choice
        else:
            assemble.parts(composed(choice), SPEC)
            legal += 1
    return legal


def pairwise_cover() -> Iterator[Choice]:
    """Few legal choices in which every pair of options occurs that occurs in one."""

    def pairs(choice: Choice) -> set[tuple[tuple[int, str], ...]]:
        return set(itertools.combinations(enumerate(choice), 2))

    columns = [here(role) for role in ROLES]
    seen: set[tuple[tuple[int, str], ...]] = set()
    for one, two in itertools.combinations(range(len(ROLES)), 2):
        for first, second in itertools.product(columns[one], columns[two]):
            if ((one, first), (two, second)) in seen:
                continue
            fixed = {one: [first], two: [second]}
            every = (fixed.get(i, column) for i, column in enumerate(columns))
            legal = [choice for choice in itertools.product(*every) if fits(choice)]
            if legal:
                best = max(legal, key=lambda choice: len(pairs(choice) - seen))
                seen |= pairs(best)
                yield best


@functools.cache
def fits(choice: Choice) -> bool:
    return not refused(choice)


@pytest.mark.parametrize("choice", list(pairwise_cover()), ids="-".join)
def test_a_pairwise_covering_set_trains_and_samples_two_steps(choice: Choice) -> None:
    values = composed(choice)
    parts = assemble.parts(values, SPEC)
    settings = TrainerSettings(steps=2, batch=8, precision="fp32")
    cpu = torch.device("cpu")
    optimizer = {"name": "sgd", "lr": 1e-3}
    trainer = Trainer(settings, optimizer=optimizer, seed=0, device=cpu)
    state = trainer.start(parts.model, parts.objective)
    before = [p.clone() for p in parts.model.parameters()]
    rows = torch.arange(8)
    batch = [(Rng(1, rows).normal((8, 2)), {"label": rows % 2}, rows)]
    steps = list(trainer.run(state, [batch, batch]))
    assert len(steps) == 2 and steps[-1].losses.isfinite().all()
    moved = zip(before, parts.model.parameters(), strict=True)
    assert any(not torch.equal(old, new) for old, new in moved)
    if not parts.draws:
        return  # a classifier
    process = parts.model.process
    steps_asked = 2 if "steps" in values["sampler"] else None
    sampler = assemble.sampler(values["sampler"], process, steps=steps_asked)
    denoiser = parts.denoiser.given(label=rows % 2)
    x = process.prior((8, 2), Rng(2, rows))
    states = list(sampler.trajectory(denoiser, x, Rng(2, rows)))
    assert len(states) == (steps_asked or 17) and states[-1].isfinite().all()


REFUSALS = [
    ({"sampler": {"name": "ancestral", "etta": 0.0}}, "did you mean `eta`"),
    ({"sampler": {"name": "ancestral", "eta": "no"}}, "sampler.eta: expected a number"),
    ({"sampler": {"name": "ancestral", "eta": 1.5}}, "sampler.eta: must be in [0, 1]"),
    (
        {"sampler": {"name": "ancestral", "steps": 1001}},
        "sampler.steps: must be <= 1000",
    ),
    ({"guidance": {"name": "cfg"}}, "objective.drop > 0"),
]


@pytest.mark.parametrize(("change", "message"), REFUSALS)
def test_parts_are_checked_against_each_other(
    change: dict[str, Any], message: str
) -> None:
    values = composed(("ddpm", "eps", "simple", "ancestral"))
    for role, own in change.items():
        values[role] = (
            {"grid": {"name": "uniform"}} if role == "sampler" else {}
        ) | own
    with pytest.raises(ConfigError) as caught:
        assemble.parts(values, SPEC)
    assert message in caught.value.render()


def test_labels_that_are_not_there_are_refused_all_at_once() -> None:
    values = composed(("edm", "edm", "edm", "heun"))
    values["objective"] = {**values["objective"], "drop": 0.1}
    values["guidance"] = {"name": "cfg", "scale": 2.0}
    with pytest.raises(ConfigError) as caught:
        assemble.parts(values, Spec((2,)))
    text = caught.value.render()
    assert "objective.drop: must be 0 for data without labels" in text
    assert "the model is unconditional" in text


def test_churn_needs_a_finite_noise_level_and_a_step_count_a_sampler() -> None:
    process = assemble.processes.build(node("process", "ddpm"))
    for steps, nfe, found in ((7, None, 13), (None, 14, 13), (None, 13, 13)):
        built = assemble.sampler(node("sampler", "heun"), process, steps, nfe)
        assert built.calls(built.steps) == found


def test_weights_follow_from_the_seed_alone() -> None:
    values = composed(("edm", "edm", "edm", "heun"))
    before = torch.get_rng_state()
    first = assemble.model(values, SPEC).state_dict()
    torch.randn(3)  # whatever happened before
    second = assemble.model(values, SPEC).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = assemble.model(values | {"seed": 1}, SPEC).state_dict()
    assert any(not torch.equal(first[name], other[name]) for name in first)
    torch.set_rng_state(before)
