"""How much is left unknown: Var[x_0 | x_t] as one number C(t), and its estimates.

Three estimates of C per coordinate, with e = (x_t - alpha m) / sigma for a mean m:

    noise   C = (sigma / alpha)^2 (1 - E e^2)          if m is exact (eq. 8 and 9)
    clean   C = Var[x_0] - E (m - E[x_0])^2            if m is exact
    error   C = (sigma / alpha)^2 E (eps - e)^2        for the m at hand

Always 0 <= C <= (sigma / alpha)^2; for data in [low, high], C <= ((high - low) / 2)^2.

Reference: Bao et al. 2022, theorem 1 and 2, arXiv:2201.06503; Su 2022, "Talks on
generative diffusion models" part 7 and 8, https://kexue.fm/archives/9245.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from torch import Tensor

from diffusion_cli.denoiser import Denoiser
from diffusion_cli.errors import CheckpointError
from diffusion_cli.processes.affine import Affine, Diffusion, Scales
from diffusion_cli.rng import Rng

Estimate = Literal["noise", "error", "clean"]
LARGEST = 80.0  # of sigma / alpha, where a path itself knows no largest
BY_FIT = "fit ckpt=RUN variance=analytic"  # the command that finds it


class Spread:
    """C(t) between known times, clipped to what is possible.

    C (alpha^2 + sigma^2) / sigma^2 is of order one from data to prior. It is linear in
    log(sigma / alpha) between known times, and constant beyond the first and the last.

    Args:
        process: Whose times these are.
        times: Known times, rising.
        errors: C (alpha^2 + sigma^2) / sigma^2 at these times.
        largest: A bound on C from the range of the data.
        clip: Keep C between 0 and its bounds.
    """

    def __init__(
        self,
        process: Affine,
        times: Tensor,
        errors: Tensor,
        largest: float = math.inf,
        clip: bool = True,
    ) -> None:
        self.process, self.largest, self.clip = process, largest, clip
        nodes = _ratio(process.schedule(times.double())).log().cpu()
        self.nodes = torch.cat((nodes[:1] - 1, nodes))  # never fewer than two
        self.errors = torch.cat((errors[:1], errors)).double().cpu()

    def __call__(self, t: Tensor) -> Tensor:
        """C at the times `t`, float64, the shape of `t`."""
        k = self.process.schedule(t)
        nodes, errors = self.nodes.to(t.device), self.errors.to(t.device)
        place = _ratio(k).log()
        right = torch.searchsorted(nodes, place).clamp(1, len(nodes) - 1)
        start, stop = nodes[right - 1], nodes[right]
        part = ((place - start) / (stop - start)).clamp(0, 1)
        error = errors[right - 1] + part * (errors[right] - errors[right - 1])
        found = error * k.sigma**2 / (k.alpha**2 + k.sigma**2)
        if not self.clip:
            return found
        bound = (_ratio(k) ** 2).clamp(max=self.largest)
        return found.clamp(min=0).minimum(bound)


def fitted(
    process: Affine,
    values: Mapping[str, Tensor],
    estimate: Estimate = "noise",
    clip: bool = True,
) -> Spread:
    """C(t) from what `Fit` found (`CheckpointError` if it cannot have found that)."""
    _demand_sound(process, values)
    times = values["times"].double()
    k = process.schedule(times)
    left = {
        "noise": lambda: 1 - values["noise"],
        "error": lambda: values["error"],
        "clean": lambda: (values["data"] - values["clean"]) / _ratio(k) ** 2,
    }[estimate]()
    largest = float((values["high"] - values["low"]) / 2) ** 2
    return Spread(process, times, left * (1 + _ratio(k) ** 2), largest, clip)


def _demand_sound(process: Affine, values: Mapping[str, Tensor]) -> None:
    """Refuse values that no fit of this process writes."""
    low, high = process.span
    try:
        times = values["times"].double()
        columns = torch.stack([values[n].double() for n in ("noise", "error", "clean")])
        scalars = [float(values[name]) for name in ("data", "low", "high")]
        sound = times.ndim == 1 and columns.shape == (3, len(times)) and len(times) > 0
        sound = sound and bool(columns.isfinite().all() and (times.diff() > 0).all())
        sound = sound and low <= float(times[0]) and float(times[-1]) <= high
        sound = sound and not any(map(math.isnan, scalars))
    except (KeyError, RuntimeError, ValueError):
        sound = False
    if not sound:
        message = "derived/analytic: these are not the values of a fit"
        raise CheckpointError(message, "dcli fit ckpt=RUN variance=analytic", "DERIVED")


def recorded(process: Affine, cells: Tensor, clip: bool = True) -> Spread:
    """C(t) from what training recorded: counts, times and errors of v, each summed."""
    count, times, errors = cells[:, cells[0] > 0]
    return Spread(process, times / count, errors / count, clip=clip)


def known_times(process: Affine, count: int | None = None) -> Tensor:
    """Where C is to be found: rising times, the ends of the span among them.

    All that a discrete process knows, unless `count` is given: then so many (fewer if
    some round to the same), even in log(sigma / alpha). Other processes: 100, if not.
    """
    levels = process.levels
    if levels and (count is None or count >= levels):
        return torch.arange(1, levels + 1, dtype=torch.float64) / levels
    ends = process.schedule(torch.tensor(process.span, dtype=torch.float64))
    low, high = (float(ratio) for ratio in _ratio(ends))
    edges = math.log(low), math.log(high if process.bounded else LARGEST)
    even = torch.linspace(*edges, count or 100, dtype=torch.float64)
    times = process.schedule.time(even.exp())
    if levels:
        times = (times * levels).round().clamp(min=1).unique() / levels  # type: ignore[no-untyped-call]
    times[0] = process.span[0]
    if process.bounded:
        times[-1] = process.span[1]
    return times


class Moments:
    """Mean, variance and range of the data, in one pass."""

    def __init__(self) -> None:
        self.count, self.sum, self.square = 0, torch.zeros(()), torch.zeros(())
        self.low, self.high = torch.tensor(math.inf), torch.tensor(-math.inf)

    @torch.no_grad()
    def add(self, x0: Tensor) -> None:
        """Count a batch (B, ...)."""
        x = x0.double()
        self.count += len(x)
        self.sum = self.sum.to(x) + x.sum(0)
        self.square = self.square.to(x) + x.square().sum(0)
        self.low = self.low.to(x).minimum(x.min())
        self.high = self.high.to(x).maximum(x.max())

    @property
    def mean(self) -> Tensor:
        """E[x_0], in the shape of a sample."""
        return self.sum / self.count

    @property
    def variance(self) -> Tensor:
        """The variance of a coordinate, averaged over coordinates, ()."""
        return (self.square / self.count - self.mean**2).mean()


class Fit:
    """The averages behind all three estimates, over data and times.

    The average of e^2 takes that of eps^2, known to be 1, as a control variate: far
    from the data, where e is nearly eps, it would drown in the noise of eps^2.

    Args:
        denoiser: Gives the means; in evaluation mode.
        times: Where to look, (N,).
        moments: Of the same data.
    """

    def __init__(self, denoiser: Denoiser, times: Tensor, moments: Moments) -> None:
        self.denoiser, self.times, self.moments = denoiser, times.double(), moments
        self.count = 0
        self.sums = torch.zeros(2, 4, len(times), dtype=torch.float64)

    @torch.no_grad()
    def add(self, x0: Tensor, rng: Rng, **cond: Tensor) -> Iterator[int]:
        """Count a batch (B, ...) at every time; yields after each of them."""
        process, mean = self.denoiser.process, self.moments.mean.to(x0.device)
        assert isinstance(process, Diffusion)
        self.sums = self.sums.to(x0.device)
        self.count += len(x0)
        whole = (x0.double() - mean).square().flatten(1).mean(1)
        for i, t in enumerate(self.times.to(x0.device)):
            eps = process.noise(x0, rng.child("fit").at(i))
            x = process.corrupt(x0, t, eps)
            m = self.denoiser(x, t, **cond).mean.double()
            k = process.schedule(t)
            e, eps = (x.double() - k.alpha * m) / k.sigma, eps.double()
            found = (
                1 + (e.square() - eps.square()).flatten(1).mean(1),
                (eps - e).square().flatten(1).mean(1),
                (m - mean).square().flatten(1).mean(1),
            )
            values = torch.stack((*found, whole - found[2]))  # (4, B)
            self.sums[0, :, i] += values.sum(1)
            self.sums[1, :, i] += values.square().sum(1)
            yield i

    def tensors(self) -> dict[str, Tensor]:
        """The averages with their standard errors, float64 (N,), and of what they are.

        The error of `clean` is that of the difference of the data's variance and it.
        """
        n = self.count
        mean, square = (self.sums / n).cpu()
        errors = ((square - mean**2).clamp(min=0) / max(n - 1, 1)).sqrt()
        return {
            "times": self.times.cpu(),
            "noise": mean[0],
            "error": mean[1],
            "clean": mean[2],
            "noise_se": errors[0],
            "error_se": errors[1],
            "clean_se": errors[3],
            "data": self.moments.variance.cpu(),
            "low": self.moments.low.cpu(),
            "high": self.moments.high.cpu(),
            "count": torch.tensor(n, dtype=torch.int64),
        }


def _ratio(k: Scales) -> Tensor:
    return k.sigma / k.alpha
