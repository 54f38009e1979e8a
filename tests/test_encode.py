"""Running the probability-flow ODE forward (T4.5)."""

from collections import Counter

import pytest
import torch
from oracles import SCHEDULES, NormalData, gaussian, number, rows

from diffusion_cli.odes import encode, integrate
from diffusion_cli.samplers import samplers

S2 = torch.tensor([0.25, 2.0])


def there(data, x0, tolerance=1e-7):
    return encode(data, x0, rtol=tolerance, atol=tolerance, counts=Counter())


@pytest.mark.parametrize("tolerance", [1e-4, 1e-5, 1e-7])
@pytest.mark.parametrize("name", SCHEDULES)
def test_there_and_back(name, tolerance):
    """T4.5, derived: the factor 10 is no law, the number of steps is its bound.

    A step at c leaves at most tolerance (1 + |y_c|), root mean square over d; the exact
    flow of FIX-G shrinks it by s / sqrt(s^2 + c^2) on the way to c = 0, and |y_c| is
    |y_0| / that. Every step, there or back, so leaves tolerance (1 + |y_0|) at most.
    """
    process = gaussian(name)
    data = NormalData(process, S2)
    clocks = process.chart(torch.tensor(process.span, dtype=torch.float64)).clock

    def field(clock, y):
        t = process.instant(clock).clamp(min=process.span[0])
        x = process.chart(t).scale * y
        return process.slope(data(x, t), x, t)

    y, counts = S2.sqrt() * rows(32).normal((32, 2)).double(), Counter()
    how = {"rtol": tolerance, "atol": tolerance, "counts": counts}
    end = integrate(field, y, clocks, **how)[-1]
    back = integrate(field, end, clocks.flip(0), **how)[-1]
    bound = 2**0.5 * counts["accepted"] * tolerance * (1 + float(y.abs().max()))
    assert 0 < float((back - y).abs().max()) < bound
    assert bound < 1500 * tolerance


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_code_of_a_normal_is_normal(name):
    """T4.5: x_1 in closed form, of the prior's variance."""
    process = gaussian(name)
    data = NormalData(process, S2)
    x0 = S2.sqrt() * rows(4000).normal((4000, 2)).double()
    x1, end = there(data, x0), number(process.span[1])
    exact = data.exact(x0, number(0.0), end)
    scale = process.end.sigma
    assert float((x1 - exact).abs().max() / scale) < 2e-3
    assert float(x1.var() / scale**2) == pytest.approx(1, abs=0.05)
    assert bool((process.log_prior(x1).isfinite()).all())


@pytest.mark.parametrize("name", ["vp", "karras", "straight", "cosine"])
def test_a_sampler_decodes_what_was_encoded(name):
    """T4.5: through the last step of the sampler, which returns the belief."""
    process = gaussian(name)
    data = NormalData(process, S2, 0.3)
    x0 = 0.3 + S2.sqrt() * rows(16).normal((16, 2)).double()
    x1 = there(data, x0)
    dopri5 = samplers.build({"name": "dopri5", "rtol": 1e-6, "atol": 1e-6})
    *_, back = dopri5.trajectory(data, x1, rows(16))
    assert float((back - x0).abs().max()) < 1e-5
    grid = {"name": "uniform" if name == "straight" else "log_sigma"}
    heun = samplers.build({"name": "heun", "steps": 400, "grid": grid})
    *_, back = heun.trajectory(data, x1, rows(16))
    assert float((back - x0).abs().max()) < 1e-3


def test_the_precision_and_the_work_are_told():
    counts = Counter()
    data = NormalData(gaussian("vp"), 0.25)
    x1 = encode(data, torch.zeros(2, 3), rtol=1e-3, atol=1e-3, counts=counts)
    assert x1.dtype == torch.float32 and not x1.any()
    assert counts["calls"] == 3 + 6 * (counts["accepted"] + counts["rejected"])
