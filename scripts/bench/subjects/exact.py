"""Data whose denoiser is known, and where the exact trajectory of each x leads.

All in the coordinates y = x / alpha and c = sigma / alpha, in which every affine path
is the same ODE, dy/dc = (y - E[x_0 | y]) / c. Free of dcli and of all other packages.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

LARGEST, SMALLEST = 157.4, 0.01  # of c: those of DDPM's 1,000 betas
CALLS = (6, 8, 10, 15, 20, 30, 50)
DRAWS, DRAWN = 1, 65_536  # clouds of points, and how many points in each
FEW = 64  # points where only that it runs counts
END = 1e-4  # where the exact trajectory is at the data
Walk = Callable[["Mixture", Tensor, int], Tensor]  # unit noise, calls -> samples
Once = Callable[[], dict[str, float]]


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
        return self._unit(torch.Generator().manual_seed(0))

    def draw(self, seed: int) -> Tensor:
        """Data, (N, D)."""
        seeded = torch.Generator().manual_seed(seed)
        pick = torch.randint(len(self.means), (self.count,), generator=seeded)
        return self.means[pick] + self.variances[pick].sqrt() * self._unit(seeded)

    def _unit(self, seeded: torch.Generator) -> Tensor:
        shape = (self.count, self.means.shape[1])
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


def circle(count: int) -> Mixture:
    """8 normals of standard deviation 0.1 on a circle of radius 1.3."""
    angle = torch.arange(8) * math.pi / 4
    means = 1.3 * torch.stack((angle.cos(), angle.sin()), 1)
    return Mixture(means, torch.full((8, 2), 0.01), count)


def problems() -> dict[str, Mixture]:
    """What is reported on: no sampler here was chosen or tuned by these."""
    seeded = torch.Generator().manual_seed(0)
    few = torch.randn(12, 5, generator=seeded).double()
    widths = 0.05 + 0.25 * torch.rand(12, 1, generator=seeded).double()
    slow = torch.arange(1, 513).double() ** -1.0
    slow = slow / slow.mean() / 3
    fast = torch.exp(-torch.arange(64).double() / 8)
    fast = fast / fast.mean() / 10
    means = 0.2 + 2 * torch.randn(6, 64, generator=seeded).double() * fast.sqrt()
    shares = torch.rand(6, 1, generator=seeded).double()
    offset = torch.linspace(-0.5, 0.5, 512)
    return {
        "8 normals on a circle": circle(4096),
        "12 normals, 5-d": Mixture(few, (widths**2).expand(12, 5), 2048),
        "a normal law, 512-d": Mixture(offset[None], slow[None], 64),
        "6 normals, 64-d": Mixture(means, fast * shares, 256),
    }


def tuning() -> dict[str, Mixture]:
    """What samplers and grids are chosen by."""
    line = torch.tensor([-1.0, 0.0, 1.0])
    spectrum = torch.arange(1, 769).double() ** -1.5
    spectrum = spectrum / spectrum.mean() / 4
    seeded = torch.Generator().manual_seed(1)
    small = torch.arange(1, 33).double() ** -1.5
    small = small / small.mean() / 10
    means = torch.randn(4, 32, generator=seeded).double() * small.sqrt() * 2 + 0.3
    widths = torch.rand(4, 1, generator=seeded).double()
    return {
        "9 narrow normals": Mixture(
            torch.cartesian_prod(line, line), torch.full((9, 2), 0.0025), 4096
        ),
        "a normal law, 768-d": Mixture(torch.zeros(1, 768), spectrum[None], 64),
        "4 normals, 32-d": Mixture(means, small * widths, 512),
    }


def measured(
    walk: Walk, begin: float, calls: Sequence[int], end: float, small: bool = False
) -> Once:
    """Both ways to judge: `apart` if there are numbers of calls, else `judged`."""
    if calls:
        return apart(walk, begin, calls, FEW if small else DRAWN)
    return judged(walk, begin, end, small)


def judged(walk: Walk, begin: float, end: float, small: bool = False) -> Once:
    """Root mean square errors relative to the data, geometric means over CALLS.

    Args:
        walk: What is judged.
        begin: c at which it starts: y = begin times the noise.
        end: c at which it is compared; END is the data.
        small: Few points of one problem, at few calls.
    """
    chosen, counts = problems(), CALLS
    if small:
        chosen, counts = {"8 normals on a circle": circle(FEW)}, CALLS[:2]

    def once() -> dict[str, float]:
        numbers = {}
        for name, problem in chosen.items():
            noise = problem.start()
            exact = problem.follow(noise * begin, begin, end)
            logs = []
            for calls in counts:
                gap = walk(problem, noise, calls).double() - exact
                logs.append(float(gap.square().mean().sqrt() / exact.std()))
            numbers[name] = math.exp(sum(map(math.log, logs)) / len(logs))
        logs = [math.log(value) for value in numbers.values()]
        return {"error": math.exp(sum(logs) / len(logs))} | numbers

    return once


def apart(walk: Walk, begin: float, calls: Sequence[int], drawn: int = DRAWN) -> Once:
    """Sliced W2 between clouds of samples and of data on a circle, means of DRAWS."""

    def once() -> dict[str, float]:
        problem = circle(DRAWS * drawn)
        data, noise = problem.draw(1).split(drawn), problem.start()
        numbers = {}
        for count in calls:
            clouds = walk(problem, noise, count).double().split(drawn)
            gaps = [sliced(x, y) for x, y in zip(clouds, data, strict=True)]
            numbers[f"{count} calls"] = sum(gaps) / DRAWS
        return numbers

    return once


def sliced(x: Tensor, y: Tensor) -> float:
    """The root mean square of W2 along 256 even directions of the plane."""
    angle = torch.arange(256).double() * math.pi / 256
    axes = torch.stack((angle.cos(), angle.sin()))  # (2, 256)
    gaps = (x @ axes).sort(0).values - (y @ axes).sort(0).values
    return float(gaps.square().mean().sqrt())


def another(calls: Sequence[int], small: bool = False) -> Once:
    """Other data in the samples' place: what no sampler can be expected to beat."""
    return measured(lambda problem, *_: problem.draw(2), 1.0, calls, END, small)
