"""Data whose denoiser is known, and where the exact trajectory of each x leads.

All in the coordinates y = x / alpha and c = sigma / alpha, in which every affine path
is the same ODE, dy/dc = (y - E[x_0 | y]) / c. Free of dcli and of all other packages.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

LARGEST, SMALLEST = 157.4, 0.01  # of c: those of DDPM's 1,000 betas
CALLS = (6, 8, 10, 15, 20, 30, 50)
END = 1e-4  # where the exact trajectory is at the data
Ends = dict[int, Tensor]  # by number of calls


class Mixture:
    """A mixture of normals with diagonal covariances, means and variances (K, D)."""

    def __init__(self, means: Tensor, variances: Tensor, count: int) -> None:
        self.means, self.variances = means.double(), variances.double()
        self.count = count  # trajectories

    def mean(self, y: Tensor, c: Tensor) -> Tensor:
        """E[x_0 | y], the shape of `y`; `c` is ()."""
        v = self.variances + c.double() ** 2  # (K, D)
        gaps = y.double()[:, None] - self.means
        logs = -(gaps.square() / (2 * v)).sum(-1) - v.log().sum(-1) / 2
        share = logs.softmax(1)[..., None]
        found = (share * (self.means + self.variances / v * gaps)).sum(1)
        return found.to(y.dtype)

    def start(self) -> Tensor:
        """Unit noise, (N, D), the same everywhere."""
        shape = (self.count, self.means.shape[1])
        seeded = torch.Generator().manual_seed(0)
        return torch.randn(shape, generator=seeded, dtype=torch.float64)

    def follow(self, y: Tensor, c: float, end: float = END, steps: int = 400) -> Tensor:
        """Runge-Kutta's fourth order in log c; with the belief where `end` is END."""
        logs = torch.linspace(math.log(c), math.log(end), steps + 1).double()

        def slope(y: Tensor, at: Tensor) -> Tensor:
            return y - self.mean(y, at.exp())

        for a, b in pairwise(logs):
            h = b - a
            first = slope(y, a)
            second = slope(y + h / 2 * first, a + h / 2)
            third = slope(y + h / 2 * second, a + h / 2)
            fourth = slope(y + h * third, b)
            y = y + h / 6 * (first + 2 * second + 2 * third + fourth)
        return self.mean(y, logs[-1].exp()) if end == END else y


def problems() -> dict[str, Mixture]:
    """Points of the plane, and spectra like those of images."""
    angle = torch.arange(8) * math.pi / 4
    ring = 1.3 * torch.stack((angle.cos(), angle.sin()), 1)
    line = torch.tensor([-1.0, 0.0, 1.0])
    spectrum = torch.arange(1, 257).double() ** -1.5
    spectrum = spectrum / spectrum.mean() / 4
    seeded = torch.Generator().manual_seed(0)
    small = torch.arange(1, 65).double() ** -1.5
    small = small / small.mean() / 10
    means = torch.randn(6, 64, generator=seeded).double() * small.sqrt() * 2 + 0.3
    widths = torch.rand(6, 1, generator=seeded).double()
    return {
        "8 normals on a circle": Mixture(ring, torch.full((8, 2), 0.01), 512),
        "9 narrow normals": Mixture(
            torch.cartesian_prod(line, line), torch.full((9, 2), 0.0025), 512
        ),
        "a normal law, 256-d": Mixture(torch.zeros(1, 256), spectrum[None], 64),
        "6 normals, 64-d": Mixture(means, small * widths, 128),
    }


def judged(
    walk: Callable[[Mixture, Tensor, int], Tensor], begin: float, end: float = END
) -> Callable[[], dict[str, float]]:
    """Root mean square errors relative to the data, geometric means over CALLS.

    Args:
        walk: From a problem, unit noise and a number of calls to samples.
        begin: c at which it starts: y = begin times the noise.
        end: c at which it stops.
    """

    def once() -> dict[str, float]:
        numbers = {}
        for name, problem in problems().items():
            noise = problem.start()
            exact = problem.follow(noise * begin, begin, end)
            logs = []
            for calls in CALLS:
                gap = walk(problem, noise, calls).double() - exact
                logs.append(float(gap.square().mean().sqrt() / exact.std()))
            numbers[name] = math.exp(sum(map(math.log, logs)) / len(logs))
        logs = [math.log(value) for value in numbers.values()]
        return {"error": math.exp(sum(logs) / len(logs))} | numbers

    return once
