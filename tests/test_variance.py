"""The optimal reverse variance (T5.1-5, G7)."""

from itertools import pairwise

import pytest
import torch
from estimated import fit, left
from oracles import (
    Finite,
    Known,
    NormalData,
    Still,
    exact_fit,
    gaussian,
    number,
    rows,
    scales,
)

from diffusion_cli.core import Normal, Point
from diffusion_cli.denoiser import Denoiser
from diffusion_cli.guidance import guidances
from diffusion_cli.variance import fitted, known_times

ESTIMATES = ("noise", "error", "clean")
PATHS = ("linear", "cosine", "vp", "ve", "subvp", "karras", "straight")


class Scaled(Denoiser):
    """eps is predicted as `gain` times its best prediction: an imperfect mean."""

    def __init__(self, inner, gain):
        super().__init__()
        self.inner, self.gain, self.process = inner, gain, inner.process

    def forward(self, x, t, **cond):
        k = scales(self.process, t, x)
        eps = (x - k.alpha * self.inner(x, t).mean) / k.sigma
        return Point((x - k.sigma * self.gain * eps) / k.alpha)


@pytest.mark.parametrize("s2", [0.25, 1.0, 4.0])
@pytest.mark.parametrize("name", PATHS)
def test_the_estimates_agree_for_exact_means(name, s2):
    """T5.1: E1 = E2 = s2 b^2 / v_t, at the known times and between them."""
    process = gaussian(name)
    times = known_times(process)
    between = (times[1:] + times[:-1]) / 2
    for estimate in ESTIMATES:
        spread = fitted(process, exact_fit(process, s2, times), estimate)
        tight = {"rtol": 1e-9, "atol": 1e-10}
        if estimate != "error":  # differences of nearly equal numbers
            tight = {"rtol": 1e-6, "atol": 1e-10}
        torch.testing.assert_close(spread(times), left(process, s2, times), **tight)
        torch.testing.assert_close(
            spread(between), left(process, s2, between), rtol=1e-2, atol=1e-9
        )


@pytest.mark.parametrize("name", ["linear", "karras", "straight"])
def test_the_fit_finds_what_is_expected(name):
    """T5.1 within four standard errors; the data have a mean of their own."""
    process, s2 = gaussian(name), torch.tensor([0.1, 0.5])
    data = NormalData(process, s2, m=0.7)
    x0 = 0.7 + s2.sqrt() * rows(4000, 5).normal((4000, 2))
    times = known_times(process, 12)
    found, exact = fit(data, x0, times), exact_fit(process, s2, times)
    exact["clean"] += found["data"] - exact["data"]  # paired with the data's variance
    for name in ESTIMATES:
        gap, error = found[name] - exact[name], found[f"{name}_se"]
        assert bool((gap.abs() < 4 * error).all())
        assert bool((gap.abs() > error / 100).any())
    assert float(found["data"]) == pytest.approx(0.3, rel=0.05)
    assert found["low"] == x0.min() and found["high"] == x0.max()
    # the control variate: far from the data the noise of eps^2 is gone
    assert float(found["noise_se"][-1]) < (2 / 2 / 4000) ** 0.5 / 10


def test_the_fit_of_an_imperfect_mean():
    """T5.4: E (eps - k e)^2 = 1 - 2 k Gamma + k^2 Gamma, but E (k e)^2 = k^2 Gamma."""
    process, gain = gaussian("vp"), 0.9
    x0 = rows(20_000).normal((20_000, 4)).double() / 2
    times = process.schedule.time(number(0.5)).reshape(1)
    found = fit(Scaled(NormalData(process, 0.25), gain), x0, times)
    gamma = 0.5  # b^2 / v where sigma / alpha is the standard deviation of the data
    expected = {"error": 1 - 2 * gain * gamma + gain**2 * gamma, "noise": 0.405}
    assert expected["error"] == pytest.approx(0.505)
    for name, value in expected.items():
        error = float(found[f"{name}_se"])
        assert float(found[name]) == pytest.approx(value, abs=4 * error)
        assert error < 0.005


@pytest.mark.parametrize("estimate", ["noise", "error"])
@pytest.mark.parametrize("s2", [0.25, 1.0, 4.0])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", ["linear", "vp", "straight", "ve"])
def test_normal_data_are_exact_at_any_subsequence(name, eta, s2, estimate):
    """T5.2, G7: the variance is s2 to 1e-10 after 1, 2, 5 or 33 uneven steps."""
    process = gaussian(name)
    times = known_times(process)
    times = times[process.schedule(times).alpha > 0]
    values = {"analytic": exact_fit(process, s2, times)}
    data = NormalData(process, s2)
    node = {"name": "analytic", "estimate": estimate}
    denoiser = guidances.build(node, denoiser=data, context=Known(values))
    zero, one = torch.zeros(1, 1).double(), torch.ones(1, 1).double()
    for steps in (1, 2, 5, 33):
        u = torch.sort(rows(1, steps).uniform((1, steps))[0], descending=True).values
        picked = times[(u * len(times)).long().unique().flip(0)]
        path = torch.cat((picked, torch.zeros(1).double()))
        variance = data.variance(path[0])
        for t, s in pairwise(path):

            def step(x, z, t=t, s=s):
                q, how = denoiser(x, t), {"eta": eta, "final": "draw"}
                return process.reverse(q, x, t, s, Still(z), **how)

            gain, spread = step(one, 0.0) - step(zero, 0.0), step(zero, 1.0)
            variance = gain**2 * variance + spread**2
        assert abs(float(variance) - s2) < 1e-10


@pytest.mark.parametrize("name", ["linear", "vp", "ve", "straight"])
def test_one_step_has_the_variance_of_the_joint_normal(name):
    """T5.3: v_s - (a_t / a_s)^2 v_s^2 / v_t; 0 gives DDPM's small, 1 its large."""
    process, x = gaussian(name), torch.zeros(1, 1).double()
    t, s = number(0.6), number(0.37)
    a, b = process.schedule(t), process.schedule(s)
    forward = a.sigma**2 - (a.alpha / b.alpha) ** 2 * b.sigma**2
    for s2 in (0.0, 0.25, 1.0, 4.0):
        vt, vs = a.alpha**2 * s2 + a.sigma**2, b.alpha**2 * s2 + b.sigma**2
        expected = vs - (a.alpha / b.alpha) ** 2 * vs**2 / vt
        if s2 == 0:
            small = b.sigma**2 / a.sigma**2 * forward
            torch.testing.assert_close(expected, small, rtol=1e-9, atol=0)
        if s2 == 1 and name in ("linear", "vp"):
            torch.testing.assert_close(expected, forward, rtol=1e-9, atol=0)
        values = exact_fit(process, s2, torch.stack((s, t)))
        denoiser = guidances.build(
            {"name": "analytic", "estimate": "error"},
            denoiser=NormalData(process, s2),
            context=Known({"analytic": values}),
        )
        got = process.reverse(denoiser(x, t), x, t, s, Still(1.0)).square().squeeze()
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-15)


def test_two_points_attain_the_bound_of_the_range():
    """T5.5: in [0, (sigma / alpha)^2]; at +-1 C tends to 1 = ((high - low) / 2)^2."""
    process = gaussian("ve")
    points = torch.tensor([[-1.0], [1.0]])
    x0 = points.repeat(2000, 1)
    times = known_times(process, 20)
    found = fit(Finite(process, points), x0, times)
    bound = (process.schedule(times).sigma ** 2).clamp(max=1)
    ratio = process.schedule(times).sigma
    for estimate in ESTIMATES:
        got = fitted(process, found, estimate)(times)
        assert bool((got >= 0).all()) and bool((got <= bound).all())
        free = fitted(process, found, estimate, clip=False)(times)
        error = found[f"{estimate}_se"] * (1 if estimate == "clean" else ratio**2)
        assert bool((free >= -4 * error).all())
        assert bool((free <= bound + 4 * error).all())
    assert float(fitted(process, found, "error")(times[-1])) == pytest.approx(
        1, abs=4 * float(found["error_se"][-1] * ratio[-1] ** 2)
    )
    assert float(fitted(process, found, "clean")(times[-1])) == pytest.approx(
        1, rel=5e-3
    )


def test_the_wrapper_keeps_the_mean_and_the_tilt_and_takes_times_of_a_batch():
    process, x = gaussian("vp"), rows(3).normal((3, 2))
    values = {"analytic": exact_fit(process, 0.25, known_times(process))}

    class Tilted(NormalData):
        def forward(self, x, t, **cond):
            return super().forward(x, t).tilted(x)

    inner = Tilted(process, 0.25)
    guided = guidances.build(
        {"name": "analytic"}, denoiser=inner, context=Known(values)
    )
    t = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    q = guided(x, t)
    assert isinstance(q, Normal) and q.var.dtype == x.dtype
    assert torch.equal(q.mean, inner(x, t).mean) and torch.equal(q.tilt, x)
    for i in range(3):
        alone = guided(x[i : i + 1], t[i])
        torch.testing.assert_close(alone.var.expand(1, 1), q.var[i : i + 1])
    assert [len(part.var) for part in q.chunk(3)] == [1, 1, 1]


def test_clipping_stays_between_nothing_and_the_range_of_the_data():
    process = gaussian("linear")
    times = known_times(process)
    values = exact_fit(process, 4.0, times) | {"low": number(-1), "high": number(1)}
    values["noise"] = values["noise"].clone()
    values["noise"][3] = 1.5  # more than eps itself: a negative variance
    free, kept = (fitted(process, values, "noise", clip) for clip in (False, True))
    assert float(free(times[3])) < 0 and float(kept(times[3])) == 0
    assert float(free(times).max()) > 1 and float(kept(times).max()) == 1
    assert float(kept(number(0.0))) == 0


@pytest.mark.parametrize("name", ["linear", "cosine", "vp", "karras", "straight"])
def test_where_the_fit_looks(name):
    process = gaussian(name)
    times = known_times(process)
    assert bool((times.diff() > 0).all())
    assert float(times[0]) == process.span[0]
    if name != "straight":
        assert float(times[-1]) == process.span[1]
    assert len(times) == (process.levels or 100)
    few = known_times(process, 10)
    assert float(few[0]) == process.span[0] and 5 <= len(few) <= 10
    if process.levels:
        torch.testing.assert_close(few * 1000, (few * 1000).round())
