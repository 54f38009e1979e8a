"""The trajectory of least bound."""

from itertools import combinations, pairwise

import pytest
import torch
from estimated import fit
from oracles import (
    Known,
    eight,
    exact_fit,
    gaussian,
    rows,
)

from diffusion_cli.samplers import grids
from diffusion_cli.samplers.optimal import costs_of
from diffusion_cli.variance import fitted, known_times


def kl(process, s2, path):
    """KL of the true joint from the chain of isotropic normals, in closed form.

    Both have the same means; a normal of variances w against V I costs
    sum (log(V / w) + w / V - 1) / 2 with V their average.
    """
    total = 0.0
    for t, s in pairwise(path):
        a, b = process.schedule(t), process.schedule(s)
        vt, vs = a.alpha**2 * s2 + a.sigma**2, b.alpha**2 * s2 + b.sigma**2
        w = vs - (a.alpha / b.alpha) ** 2 * vs**2 / vt
        total += float((w.mean() / w).log().sum() / 2)
    return total


@pytest.mark.parametrize("name", ["linear", "vp", "karras"])
def test_the_trajectory_is_the_best_of_all(name):
    """Bao et al. section 4: every subset of nine times, and its exact KL divergence."""
    process = gaussian(name)
    s2 = torch.tensor([0.01, 0.1, 1.0, 9.0], dtype=torch.float64)
    times = known_times(process, 9)
    values = exact_fit(process, s2, times)
    context = Known({"analytic": values})
    costs = costs_of(process, times, fitted(process, values, "error"))
    grid = grids.build({"name": "optimal"}, context=context)
    constants, choices = [], 0
    for steps in range(1, len(times) + 1):
        found = {}
        for inner in combinations(range(len(times) - 1), steps - 1):
            places = [*inner, len(times) - 1][::-1]
            path = torch.cat((times[places], torch.zeros(1).double()))
            found[tuple(path.tolist())] = kl(process, s2, path)
            ways = pairwise([*(place + 1 for place in places), 0])
            cost = sum(float(costs[to, come - 1]) for come, to in ways)
            constants.append(found[tuple(path.tolist())] - len(s2) / 2 * cost)
        best, least = min(found.items(), key=lambda item: item[1])
        chosen = tuple(grid(process, steps).tolist())
        assert found[chosen] == pytest.approx(least, rel=1e-9)
        choices += len(found)
        if steps in (2, 3, 4, 5):
            assert chosen == best and max(found.values()) > 1.01 * least
    assert choices == 2 ** (len(times) - 1)
    assert max(constants) - min(constants) < 1e-9


def test_all_trajectories_are_equally_good_for_isotropic_normals():
    process = gaussian("vp")
    times = known_times(process, 7)
    spread = fitted(process, exact_fit(process, 0.25, times), "error")
    costs = costs_of(process, times, spread)
    totals = []
    for inner in combinations(range(1, 7), 3):
        ways = pairwise([7, *inner[::-1], 0])
        totals.append(sum(float(costs[to, come - 1]) for come, to in ways))
    assert max(totals) - min(totals) < 1e-9


def test_a_trajectory_has_no_more_steps_than_were_fitted():
    process = gaussian("vp")
    values = exact_fit(process, 0.25, known_times(process, 10))
    grid = grids.build({"name": "optimal"}, context=Known({"analytic": values}))
    assert len(grid(process, 10)) == 11
    with pytest.raises(ValueError, match="<= 10, the times fitted"):
        grid(process, 11)


def test_a_mixture_prefers_steps_where_it_decides():
    """Eight normals: the trajectory from a fit of exact beliefs loses less."""
    process = gaussian("vp")
    data = eight(process)
    times = known_times(process, 40)
    values = fit(data, data.sample(2000, rows(2000)).float(), times)
    grid = grids.build({"name": "optimal"}, context=Known({"analytic": values}))
    costs = costs_of(process, times, fitted(process, values, "error"))

    def cost(path):
        places = torch.searchsorted(times, path[:-1] - 1e-12) + 1
        ways = pairwise([*places.tolist(), 0])
        return sum(float(costs[to, come - 1]) for come, to in ways)

    even = times[torch.linspace(39, 0, 8).round().long()]
    even = torch.cat((even, torch.zeros(1).double()))
    assert cost(grid(process, 8)) < cost(even) - 0.1
