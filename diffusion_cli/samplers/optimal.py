"""The trajectory that loses least of the likelihood, by dynamic programming."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from diffusion_cli.denoiser import Context
from diffusion_cli.processes import Process
from diffusion_cli.processes.affine import Diffusion
from diffusion_cli.samplers import Grid, grids
from diffusion_cli.settings import require
from diffusion_cli.variance import BY_FIT, Spread, fitted


@grids("optimal")
class Optimal(Grid):
    """The K of N fitted times with the least KL divergence, after `dcli fit`.

    KL(q | p) / d = sum over steps t -> s of J(s, t) / 2 + a constant
    J(s, t) = log(1 + gamma^2 C(t) / v)  for s > 0,   J(0, t) = log C(t)
    v = sigma_s^2 (1 - r^2),  gamma = alpha_s (1 - r^2),
    r = alpha_t sigma_s / (alpha_s sigma_t)

    v + gamma^2 C(t) is the optimal variance of an ancestral step with eta = 1, and v
    that of q(x_s | x_t, x_0). The last step draws x_0 with variance C(t), so that the
    smallest time is chosen too, where the paper keeps it. C is the fitted `error`,
    which makes this the KL divergence for imperfect means as well. On data N(m, s^2 I)
    all trajectories are equally good.

    Reference: Bao et al. 2022, section 4 and algorithm 2, arXiv:2201.06503.
    """

    needs = Diffusion

    def __init__(self, context: Context) -> None:
        self.context = context

    def __call__(self, process: Process, steps: int) -> Tensor:
        path = cast(Diffusion, process)
        values = self.context.fitted("analytic", BY_FIT)
        times = values["times"].double().cpu()
        if times[-1] < path.span[1]:
            times = torch.cat((times, times.new_tensor(path.span[1:])))
        known = len(times)
        require(steps <= known, "steps", steps, f"<= {known}, the times fitted")
        costs = costs_of(path, times, fitted(path, values, "error"))
        return torch.cat((torch.zeros(1).double(), times))[cheapest(costs, steps)]


def costs_of(process: Diffusion, times: Tensor, spread: Spread) -> Tensor:
    """J(s, t) for s in (0, *times) and t in times: (N + 1, N), infinite for s >= t."""
    left = spread(times)  # C, (N,)
    k = process.schedule(times)
    alpha, sigma = k.alpha[:, None], k.sigma[:, None]
    rest = 1 - (k.alpha * sigma / (alpha * k.sigma)) ** 2  # 1 - r^2, (N, N)
    gain = (alpha * rest) ** 2 * left / (sigma**2 * rest)
    later = torch.ones_like(rest, dtype=torch.bool).triu(1)  # s < t
    inner = torch.where(later, gain.log1p(), torch.inf)
    return torch.cat((left.log()[None], inner))


def cheapest(costs: Tensor, steps: int) -> Tensor:
    """The places of the cheapest way from the last time to 0: (steps + 1,) int64."""
    size = len(costs)
    least = torch.full((size,), torch.inf, dtype=costs.dtype)
    least[-1] = 0
    before = []
    for _ in range(steps):
        least, come = (costs + least[1:]).min(1)
        before.append(come + 1)
    place, way = 0, [0]
    for come in reversed(before):
        place = int(come[place])
        way.append(place)
    return torch.tensor(way[::-1])
