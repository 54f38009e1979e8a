"""What a bound on W2 by score matching is made of. Registers nothing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor

from diffusion_cli.core import Point, Posterior
from diffusion_cli.denoiser import Denoiser
from diffusion_cli.metrics import Batch
from diffusion_cli.processes.affine import Affine, Diffusion

Form = Literal["ode", "sde"]


class Empirical(Denoiser):
    """The exact belief in a finite set of points, (N, ...)."""

    def __init__(self, process: Affine, points: Tensor) -> None:
        super().__init__()
        self.process: Affine = process
        self.points = points.double()

    def forward(self, x: Tensor, t: Tensor, **cond: Tensor) -> Posterior:
        k, flat = self.process.schedule(t), self.points.flatten(1)
        gaps = torch.cdist(
            x.flatten(1), k.alpha * flat, compute_mode="donot_use_mm_for_euclid_dist"
        )
        share = (-(gaps / k.sigma).square() / 2).softmax(1)
        return Point((share @ flat).reshape(x.shape))


def steepest(
    denoiser: Denoiser, x: Tensor, t: Tensor, u: Tensor, iterations: int
) -> Tensor:
    """The largest eigenvalue of sym(dE[x_0]/dx) in the batch, from below: ().

    Power iteration on sym(J) + c, from directions `u`, with c just above the largest
    |sym(J) u| so far: the most negative direction does not win. J^T u is exact; J u, a
    difference quotient, only steers, so that what is returned, u^T J u / u^T u, is
    never above the true value. No second derivatives are taken.
    """
    step = 0.01 * float(cast(Affine, denoiser.process).schedule(t).sigma)

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).flatten(1).sum(1).reshape(-1, *[1] * (a.ndim - 1))

    def back(u: Tensor) -> Tensor:
        with torch.enable_grad():
            free = x.detach().requires_grad_()
            mean = denoiser(free, t).mean
            return torch.autograd.grad(mean, free, u)[0]

    u, c = u / dot(u, u).sqrt(), torch.zeros(())
    for _ in range(iterations):
        ahead, behind = (denoiser(x + s * step * u, t).mean for s in (1, -1))
        turned = (back(u) + (ahead - behind) / (2 * step)) / 2
        c = torch.maximum(1.1 * dot(turned, turned).sqrt(), c.to(u))
        u = turned + c * u
        u = u / dot(u, u).sqrt().clamp(min=1e-30)
    return dot(back(u), u).max()


class Sweep(NamedTuple):
    """What was measured at rising times (T,): float64 on the CPU."""

    times: Tensor
    missed: Tensor  # E|x_0 - belief|^2
    error: Tensor  # E|truth - belief|^2, or the same as `missed`
    steep: Tensor  # largest eigenvalue of sym(d belief / dx)
    square: float  # E|x_0|^2
    size: int  # of one sample


@torch.no_grad()
def sweep(
    denoiser: Denoiser,
    truth: Denoiser | None,
    data: Iterable[Batch],
    times: Tensor,
    iterations: int,
) -> Sweep:
    """Errors and slopes of a belief at all times."""
    process, count = cast(Diffusion, denoiser.process), len(times)
    missed, error = (torch.zeros(count, dtype=torch.float64) for _ in range(2))
    steep = torch.full((count,), -torch.inf, dtype=torch.float64)
    square, n, size = 0.0, 0, 0
    for x0, cond, rng in data:
        x0, given = x0.double(), denoiser.given(**cond)
        square, n, size = square + float(x0.square().sum()), n + len(x0), x0[0].numel()
        for i, t in enumerate(times.to(x0.device)):
            own = rng.child("sweep").at(i)
            x = process.corrupt(x0, t, process.noise(x0, own))
            mean = given(x, t).mean
            missed[i] += (x0 - mean).square().sum().cpu()
            if truth is not None:
                error[i] += (truth(x, t).mean - mean).square().sum().cpu()
            u = own.child("direction").normal(x.shape, x.dtype)
            top = steepest(given, x, t, u, iterations).cpu()
            steep[i] = torch.maximum(steep[i], top)
    error = missed if truth is None else error
    return Sweep(times.cpu(), missed / n, error / n, steep, square / n, size)


class Bound(NamedTuple):
    """The bound and its parts; columns are (T,)."""

    columns: dict[str, Tensor]
    transport: float  # the integral of the errors
    offset: float  # of the prior, carried to the data
    floor: float  # of stopping before t = 0

    @property
    def total(self) -> float:
        """Their sum, W2(data, samples) at most."""
        return self.transport + self.offset + self.floor


def bound(process: Diffusion, found: Sweep, form: Form) -> Bound:
    """The bound from what was measured.

    ODE: W2 <= int (g^2 / 2) I e dt + I(T) W2(p_T, q_T),   I = exp int (g^2 L_s / 2 - f)
    SDE: W2 <= int g^2 I e dt       + I(T) W2(p_T, q_T),   I = exp int (g^2 L_s - f)

    L_s is the one-sided Lipschitz constant of the score; time runs backwards, so that
    of the drift is -f, +beta / 2 on a variance-preserving path. All is computed from
    the error and the slope of E[x_0 | x], which stay finite where alpha vanishes.
    """
    k, t = process.schedule(found.times), found.times
    twice = 1 if form == "ode" else 2
    turn = (k.alpha * k.dsigma - k.dalpha * k.sigma) / k.sigma  # g^2 alpha / 2 sigma^2
    stretch = twice * (turn * found.steep - k.dsigma / k.sigma)
    if form == "sde":
        stretch = stretch + k.dalpha / k.alpha
    growth = _integral(t, stretch).exp()
    integral = _integral(t, twice * turn * found.error.sqrt() * growth)
    to_score = (k.alpha / k.sigma**2) ** 2
    columns = {
        "t": t,
        "g2": process.diffusion(t),
        "e2_dsm": to_score * found.missed,
        "e2": to_score * found.error,
        "L_s": (k.alpha * found.steep - 1) / k.sigma**2,
        "I": growth,
        "cumulative": integral,
    }
    offset = float(growth[-1] * k.alpha[-1]) * found.square**0.5
    gap = (1 - k.alpha[0]) ** 2 * found.square + found.size * k.sigma[0] ** 2
    return Bound(columns, float(integral[-1]), offset, float(gap.sqrt()))


def _integral(t: Tensor, f: Tensor) -> Tensor:
    """From t[0] to every t, by trapezoids."""
    steps = (f[1:] + f[:-1]) / 2 * t.diff()
    return torch.cat((torch.zeros_like(t[:1]), steps.cumsum(0)))
