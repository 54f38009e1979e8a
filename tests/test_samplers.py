"""What every sampler and grid keeps: calls, ends, independence."""

import pytest
import torch
from oracles import (
    SCHEDULES,
    Known,
    NormalData,
    exact_fit,
    gaussian,
    rows,
)
from torch import nn
from walks import UNIFORM, VARIANTS, build, last

from diffusion_cli.errors import ConfigError
from diffusion_cli.samplers import grids
from diffusion_cli.variance import known_times


@pytest.mark.parametrize(
    "variant", [*VARIANTS, {"name": "heun", "churn": 20.0}], ids=str
)
@pytest.mark.parametrize("schedule", ["vp", "straight", "linear"])
def test_a_sample_does_not_depend_on_its_batch(variant, schedule):
    process = gaussian(schedule)
    data = NormalData(process, torch.tensor([0.25, 2.0]))
    sampler = build(steps=6, grid=UNIFORM, **variant)
    whole = last(sampler, data, process.prior((5, 2), rows(5)), rows(5))
    own = rows(5).of(torch.tensor([3]))
    alone = last(sampler, data, process.prior((1, 2), own), own)
    assert whole.isfinite().all() and torch.equal(whole[3:4], alone)
    assert torch.equal(
        whole, last(sampler, data, process.prior((5, 2), rows(5)), rows(5))
    )


DRAWING = [
    {"name": "ancestral"},
    {"name": "pc", "predictor": "ancestral"},
    {"name": "pc"},
    {"name": "sde_dpmpp"},
    {"name": "euler_maruyama"},
    {"name": "restart"},
    {"name": "heun", "churn": 20.0},
]


@pytest.mark.parametrize("variant", [*VARIANTS, *DRAWING], ids=str)
def test_a_variance_of_the_belief_counts_where_steps_are_the_processes_own(variant):
    sampler, process, x = (
        build(steps=4, **variant),
        gaussian("linear"),
        torch.ones(2, 2),
    )
    point, normal = (
        last(sampler, NormalData(process, spread=spread), x) for spread in (False, True)
    )
    assert torch.equal(point, normal) != sampler.own


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_calls_are_counted_exactly(variant):
    class Counted(nn.Module):
        def __init__(self, process):
            super().__init__()
            self.process, self.inner, self.calls = process, NormalData(process), 0

        def forward(self, x, t):
            self.calls += 1
            return self.inner(x, t)

    sampler, denoiser = build(steps=7, **variant), Counted(gaussian("vp"))
    states = list(sampler.trajectory(denoiser, rows(2).normal((2, 2)), rows(2)))
    assert denoiser.calls == sampler.calls(7)
    assert len(states) == 7


@pytest.mark.parametrize("name", grids.names())
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 10, 100])
def test_grids_fall_strictly_from_the_end_to_exactly_0(name, schedule, steps):
    process = gaussian(schedule)
    own = {"levels": 1000} if name == "ddim" else {}
    known = exact_fit(process, 0.25, known_times(process))
    knots = torch.linspace(1, -2, 6, dtype=torch.float64)
    context = Known({"analytic": known, f"grid-{steps}": {"knots": knots}})
    times = grids.build({"name": name, **own}, context=context)(process, steps)
    assert times.dtype == torch.float64 and len(times) == steps + 1
    assert bool((times.diff() < 0).all()) and times[-1] == 0
    assert times[-2] >= (1e-3 if name == "ddim" else process.span[0] * (1 - 1e-9))
    if name != "ddim":
        assert times[0] == process.span[1]
    if process.levels and name in ("uniform", "quadratic", "ddim"):
        torch.testing.assert_close(times * 1000, (times * 1000).round())


def test_uniform_is_edms_grid_on_edms_process():
    process = gaussian("karras")
    uniform, rho = (grids.build({"name": n})(process, 18) for n in ("uniform", "rho"))
    torch.testing.assert_close(uniform, rho)
    i = torch.arange(18, dtype=torch.float64)
    sigma = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    torch.testing.assert_close(process.schedule(rho[:-1]).sigma, sigma)


def test_ddim_strides():
    times = grids.build({"name": "ddim"})(gaussian("linear"), 10)
    assert (times * 1000).round().tolist() == [*range(901, 0, -100), 0]


def test_more_steps_than_a_discrete_process_knows_are_refused():
    with pytest.raises(ValueError, match="<= 1000"):
        grids.build(UNIFORM)(gaussian("linear"), 1001)
    with pytest.raises(ConfigError, match="steps: must be >= 1"):
        build("heun", 0)


@pytest.mark.parametrize("scale", [0.0, 1e-320, 1e300])
def test_a_scale_beyond_all_noise_is_refused(scale):
    """Its asinh is infinite, or too small to tell steps apart."""
    with pytest.raises(ConfigError, match=r"scale: must be 1e-9 to 1e9"):
        build("eab", 3, scale=scale)
    with pytest.raises(ConfigError, match=r"scale: must be 1e-9 to 1e9"):
        build("eab", 3, {"name": "asinh", "scale": scale})


@pytest.mark.parametrize("scale", [1e-9, 1e9])
def test_at_the_least_and_the_largest_scale_there_are_samples(scale):
    process = gaussian("karras")
    data, x = NormalData(process), process.prior((4, 2), rows(4)).double()
    grid = {"name": "asinh", "scale": scale}
    for sampler in (build("eab", 8, scale=scale), build("eab", 8, grid)):
        assert bool(last(sampler, data, x).isfinite().all())
