"""Parts around discrete diffusion fit, or are refused; readings."""

from __future__ import annotations

import pytest
import torch
from choices import node, options
from oracles import number, rows
from token_oracles import build, certain
from token_parts import EVERY, config, parts

from diffusion_cli import assemble
from diffusion_cli.core import Categorical, Spec
from diffusion_cli.errors import ConfigError
from diffusion_cli.parametrisations import parametrisations

SPEC = Spec((6,), "tokens", vocab=4)


# every reading, objective and sampler of tokens with every process


def tokens_only(role: str) -> list[str]:
    own = {
        "process": EVERY,
        "parametrisation": ["logits", "subs"],
        "objective": ["cross_entropy", "token_bound", "token_hybrid"],
        "sampler": ["tokens", "cached", "first_hitting", "confident"],
    }[role]
    assert set(own) <= set(options(role))
    return own


@pytest.mark.parametrize("process", EVERY)
@pytest.mark.parametrize("reading", tokens_only("parametrisation"))
@pytest.mark.parametrize("sampler", tokens_only("sampler"))
def test_parts_fit_or_are_refused_with_a_reason(
    process: str, reading: str, sampler: str
) -> None:
    masks = process in ("mask", "mask_count")
    late = sampler == "first_hitting" and process == "mask_count"
    walk = node("sampler", sampler)
    walk = {**walk, "steps": 6} if "steps" in walk else walk
    change = {"parametrisation": node("parametrisation", reading), "sampler": walk}
    refused = late or ((reading == "subs" or sampler != "tokens") and not masks)
    early = sampler == "cached" and reading != "subs"
    for name in tokens_only("objective"):
        objective = {"objective": node("objective", name)}
        if refused or early:
            with pytest.raises(ConfigError) as caught:
                parts(process, **change, **objective)
            reason = (
                "a process that masks" if refused else "does not depend on the time"
            )
            assert reason in caught.value.render()
        else:
            assert parts(process, **change, **objective)


def test_tokens_and_numbers_do_not_mix() -> None:
    for process, data in (("mask", "digits"), ("ddpm", "markov")):
        values = config("mask") | {"process": node("process", process)}
        values["dataset"] = node("dataset", data)
        with pytest.raises(ConfigError) as caught:
            assemble.model(values, assemble.spec_of(values))
        assert "works on" in caught.value.render()
        wanted = "dataset=text" if process == "mask" else "process=mask"
        assert wanted in caught.value.hint


def test_a_process_for_other_data_is_one_finding() -> None:
    values = config("mask") | {"process": node("process", "cold_blur")}
    with pytest.raises(ConfigError) as caught:
        assemble.parts(values, assemble.spec_of(values))
    assert not caught.value.more  # not also that tokens are no images
    assert "process=mask" in caught.value.hint


# readings


@pytest.mark.parametrize("name", ["logits", "subs"])
def test_readings_believe_in_tokens_of_the_data_alone(name: str) -> None:
    process = build("mask", 3, 4)
    reading = parametrisations.build({"name": name})
    state = process.state(Spec((4,), "tokens", vocab=3))
    assert reading.out(state) == (4, 4)
    x, out = torch.tensor([[0, 3, 2, 3]]), rows(1).normal((1, 4, 4))
    q = reading.posterior(out, x, number(0.5), process)
    assert isinstance(q, Categorical) and q.logits.shape == (1, 4, 3)
    free = [0, 1, 2, 3] if name == "logits" else [1, 3]
    expected = out[..., :3].softmax(-1)
    torch.testing.assert_close(q.mean[:, free], expected[:, free])
    if name == "subs":
        assert q.mean[0, 0].tolist() == [1, 0, 0] and q.mean[0, 2].tolist() == [0, 0, 1]
        surprise = q.nll(torch.tensor([[0, 1, 2, 1]]))
        assert surprise[0, [0, 2]].tolist() == [0, 0]


def test_subs_shows_the_time_only_if_asked() -> None:
    process, x, t = build("mask"), torch.zeros(2, 3).long(), torch.tensor([0.2, 0.7])
    for time in (False, True):
        reading = parametrisations.build({"name": "subs", "time": time})
        level = reading.inputs(x, t, process)[1]
        assert level.tolist() == (t.tolist() if time else [0, 0])
        assert reading.timeless is not time


def test_guidance_of_logits_extrapolates_and_renormalises() -> None:
    """log p = log p_none + w (log p_label - log p_none), renormalised once."""
    one, two = (rows(2, seed).normal((2, 3, 5)).double() for seed in (0, 1))
    moved = Categorical(one).toward(Categorical(two), 2.5).mean
    p, q = one.softmax(-1), two.softmax(-1)
    expected = q**2.5 / p**1.5
    torch.testing.assert_close(moved, expected / expected.sum(-1, keepdim=True))
    shifted = Categorical(one + 3).toward(Categorical(two - 7), 2.5).mean
    torch.testing.assert_close(shifted, moved)  # constants of logits count for nothing
    sure = certain(torch.tensor([[0, 1, 2]] * 2), 5)
    assert sure.toward(sure, 3.0).mean.isfinite().all()
