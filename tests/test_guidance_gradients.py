"""Guidance by gradients and by other runs: T6.1, T6.3, T6.5."""

import pytest
import torch
from contexts import Stub
from guided import MEANS, WEIGHTS, Counted, guided, mixture, place, states
from labelled import Labelled
from oracles import NormalData, Still, gaussian, number, rows

from diffusion_cli.core import Spec
from diffusion_cli.errors import ConfigError
from diffusion_cli.guidance.others import carried
from diffusion_cli.parametrisations import parametrisations
from diffusion_cli.processes import Process
from diffusion_cli.processes.affine import Affine
from diffusion_cli.samplers import samplers

TIMES = [0.05, 0.4, 0.8, 0.99]


@pytest.mark.parametrize("t", TIMES)
@pytest.mark.parametrize("judged", ["vp", "karras", "subvp"])
def test_an_exact_classifier_gives_the_exact_conditional_score(judged, t):
    """T6.1, also where the classifier was trained on another schedule."""
    data, t = mixture(), number(t)
    x, label = states(data.process, t), torch.tensor([0, 1, 2, 0, 1, -1])
    q = guided(data, "classifier", place(judged), run="judge")(
        x, t, label=label * 0 - 1
    )
    torch.testing.assert_close(q.mean, data(x, t).mean)  # no label, no push

    class Unconditional(Labelled):
        def forward(self, x, t, label=None, **cond):
            return super().forward(x, t)

    plain = Unconditional(data.process, MEANS, WEIGHTS)
    q = guided(plain, "classifier", place(judged), run="judge")(x, t, label=label)
    expected = data(x, t, label=label)
    score = data.process.score
    torch.testing.assert_close(
        score(q, x, t), score(expected, x, t), rtol=1e-7, atol=1e-9
    )
    assert not torch.allclose(expected.mean[:5], data(x, t).mean[:5], atol=1e-4)


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_classifier_guidance_is_classifier_free_guidance(scale):
    """T6.1: CG(gamma) = CFG(w = gamma - 1), our scale = gamma."""
    data, label = mixture(), torch.tensor([0, 1, 2, 0, 1, 2])
    nobody = torch.full_like(label, -1)
    for t in map(number, TIMES):
        x = states(data.process, t)
        free = guided(data, "cfg", scale=scale)(x, t, label=label)
        alone = data.given()
        pushed = guided(alone, "classifier", run="judge", scale=scale)

        q = pushed(x, t, label=label).mean - data(x, t, label=label).mean
        q = q + data(x, t, label=nobody).mean  # pushed from the whole mixture
        torch.testing.assert_close(q, free.mean, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("at", ["noisy", "clean"])
def test_one_class_for_all_serves_a_model_without_labels(at):
    data = mixture()
    data.spec, t = Spec((2,)), number(0.4)
    x, ones = states(data.process, t), torch.full((6,), 1)
    labelled = guided(mixture(), "classifier", run="judge", at=at)
    fixed = guided(data, "classifier", run="judge", at=at, label=1)
    push = labelled(x, t, label=ones).mean - mixture()(x, t, label=ones).mean
    if at == "noisy":
        torch.testing.assert_close(fixed(x, t).mean - data(x, t).mean, push)
    else:
        assert not torch.allclose(fixed(x, t).mean, data(x, t).mean, atol=1e-3)
    with pytest.raises(ConfigError, match="the model knows no labels"):
        guided(data, "classifier", run="judge")
    with pytest.raises(ConfigError, match=r"label: must be in 0 \.\. 2"):
        guided(data, "classifier", run="judge", label=3)


def test_a_clean_classifier_is_asked_about_the_belief_at_its_least_noise():
    """grad_x log p(y | E[x_0 | x_t]), against finite differences."""
    data, t, h = mixture(), number(0.5), 1e-5
    judge, x = place().models["judge"], states(data.process, t)
    label = torch.tensor([0, 1, 2, 0, 1, 2])
    least = number(judge.process.span[0])
    alpha = judge.process.schedule(least).alpha

    def log_p(x):
        logits = judge(alpha * data(x, t, label=label).mean, least).logits[:, 0]
        return logits.log_softmax(1).gather(1, label[:, None])[:, 0]

    axes = torch.eye(2, dtype=torch.float64) * h
    expected = torch.stack([(log_p(x + e) - log_p(x - e)) / (2 * h) for e in axes], 1)
    q = guided(data, "classifier", run="judge", at="clean", form="mean", scale=2.0)(
        x, t, label=label
    )
    torch.testing.assert_close(q.tilt, 2 * expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(q.mean, data(x, t, label=label).mean)


@pytest.mark.parametrize("schedule", ["vp", "linear", "straight", "karras"])
def test_mean_and_score_form_agree_as_steps_become_small(schedule):
    """T6.5: what a step adds, per unit of its length, differs by O(h)."""
    process = gaussian(schedule)
    data = Labelled(process, MEANS, WEIGHTS)
    x, t, label = states(process, 0.5), number(0.5), torch.tensor([0, 1, 2, 0, 1, 2])
    gaps = []
    for h in (1e-3, 5e-4, 2.5e-4):
        plain, mean, score = (
            process.reverse(q, x, t, t - h, Still(0.0))
            for q in (
                data(x, t, label=label),
                guided(data, "classifier", run="judge", form="mean")(x, t, label=label),
                guided(data, "classifier", run="judge")(x, t, label=label),
            )
        )
        moved = (mean - plain).norm()
        assert moved > 0
        gaps.append(float((mean - score).norm() / moved))
    assert gaps[0] < 0.1
    assert gaps[0] / gaps[1] == pytest.approx(2, abs=0.1)
    assert gaps[1] / gaps[2] == pytest.approx(2, abs=0.1)


def test_a_run_that_does_not_fit_is_refused():
    data = mixture()
    ready = place().models["judge"]

    def refusal(other, name="classifier", **own):
        with pytest.raises(ConfigError) as caught:
            guided(data, name, Stub({"r": other}), run="r", **own)
        assert "hint:" in caught.value.render()
        return caught.value.render()

    diffusion = mixture()
    diffusion.parametrisation = parametrisations.build({"name": "x0"})
    assert "tells x_0, not labels" in refusal(diffusion)
    assert "is a classifier" in refusal(ready, "auto")
    for name, change in (("classifier", ready), ("auto", diffusion)):
        change.spec = Spec((3,), classes=3)
        assert "samples of shape (3,)" in refusal(change, name)
        change.spec = Spec((2,), classes=4)
        assert "knows 4 labels" in refusal(change, name)
    ready.spec = Spec((2,), classes=3, names=("a", "b", "c"))
    assert "(a, b, c, ...)" in refusal(ready)
    ready.spec, ready.process = data.spec, torch.nn.Identity()
    assert "another kind of process" in refusal(ready)


@pytest.mark.parametrize("there", ["karras", "subvp", "straight", "linear", "vp"])
@pytest.mark.parametrize("here", ["vp", "straight", "cosine"])
def test_a_state_means_the_same_on_another_path(here, there):
    one, two = gaussian(here), gaussian(there)
    x = rows(5).normal((5, 2)).double()
    for t in (number(0.3), torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5]).double()):
        moved, then = carried(x, t, one, two)
        expected = NormalData(one, 0.25, 0.7)(x, t).mean
        torch.testing.assert_close(
            NormalData(two, 0.25, 0.7)(moved, then).mean, expected
        )
    end, _ = carried(x, number(1.0), one, two)
    assert end.isfinite().all()
    assert torch.equal(carried(x, number(0.3), one, gaussian(here))[0], x)


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_autoguidance_by_an_equal_on_another_schedule_changes_nothing(scale):
    """The worse run is asked at its own time and scale."""
    data, equal = (
        NormalData(gaussian("vp"), 0.25, 0.7),
        NormalData(gaussian("karras"), 0.25, 0.7),
    )
    for each in (data, equal):
        each.spec = Spec((2,))
    equal.parametrisation = parametrisations.build({"name": "x0"})
    auto = guided(data, "auto", Stub({"r": equal}), run="r", scale=scale)
    x = rows(5).normal((5, 2)).double()
    for t in map(number, (0.01, 0.3, 0.9)):
        torch.testing.assert_close(auto(x, t).mean, data(x, t).mean)
    equal.s2 = 0.5
    other = NormalData(data.process, 0.5, 0.7)(x, t).mean
    expected = other + scale * (data(x, t).mean - other)
    torch.testing.assert_close(auto(x, t).mean, expected)


def test_outside_the_interval_the_second_belief_is_not_computed():
    """Rows of the real network, step by step."""
    model = Counted()
    sampler = samplers.build(
        {"name": "euler", "steps": 20, "grid": {"name": "rho", "rho": 7.0}}
    )
    x, label = 80 * rows(4).normal((4, 2)), torch.tensor([0, 1, 2, 0])
    worse = Counted()
    for name, own in (("cfg", {}), ("auto", {"run": "r"})):
        model.rows.clear()
        q = guided(model, name, Stub({"r": worse}), scale=2.0, low=0.3, high=5.0, **own)
        list(sampler.trajectory(q.given(label=label), x, rows(4)))
        sigma = model.process.schedule(sampler.grid(model.process, 20)[:-1]).sigma
        inside = ((sigma >= 0.3) & (sigma <= 5)).tolist()
        assert any(inside) and not all(inside)
        if name == "cfg":
            assert model.rows == [8 if within else 4 for within in inside]
        else:
            assert model.rows == [4] * 20 and worse.rows == [4] * sum(inside)


def test_an_interval_decides_for_every_sample_where_each_has_its_time():
    model, t = Counted(), torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    x, label = rows(3).normal((3, 2)), torch.tensor([0, 1, 2])
    sigma = model.process.schedule(t).sigma
    low, high = (float((sigma[i] + sigma[i + 1]) / 2) for i in (0, 1))
    q = guided(model, "cfg", scale=3.0, low=low, high=high)(x, t, label=label).mean
    plain, strong = model(x, t, label=label).mean, guided(model, "cfg", scale=3.0)
    torch.testing.assert_close(q[[0, 2]], plain[[0, 2]])
    torch.testing.assert_close(q[1], strong(x, t, label=label).mean[1])
    assert not torch.allclose(q[1], plain[1])
    asks = [guided(model, "cfg", **own).needs for own in ({}, {"high": 1.0})]
    assert asks == [Process, Affine]  # only an interval asks for a noise level
    with pytest.raises(ConfigError, match="high: must be > low=5 or null"):
        guided(model, "cfg", low=5.0, high=4.0)


@pytest.mark.parametrize("name", ["ancestral", "heun"])
@pytest.mark.parametrize(("scale", "label"), [(1.0, 2), (0.0, -1)])
def test_guidance_of_no_effect_is_bitwise_no_guidance(name, scale, label):
    """T6.3: the same streams, a real network, whole trajectories."""
    model = Counted()
    sampler = samplers.build(
        {"name": name, "steps": 7, "grid": {"name": "rho", "rho": 7.0}}
    )
    x = 80 * rows(5).normal((5, 2))

    def last(denoiser, label):
        labels = torch.full((5,), label)
        *_, x0 = sampler.trajectory(denoiser.given(label=labels), x, rows(5))
        return x0

    assert torch.equal(last(guided(model, "cfg", scale=scale), 2), last(model, label))
    assert not torch.equal(last(guided(model, "cfg", scale=2.0), 2), last(model, label))
