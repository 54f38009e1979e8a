"""Adaptive integration of ODEs: torchdiffeq's dopri5, with its work counted.

`encode` runs a process's own ODE from data to prior.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from diffusion_cli.denoiser import Denoiser
from diffusion_cli.errors import EnvironmentFault, NumericsError
from diffusion_cli.processes import Flow

MOST = 20_000  # steps: a network's noise lets too tight a tolerance go on for ever
State = TypeVar("State", Tensor, tuple[Tensor, ...])


def integrate(
    field: Callable[[Tensor, State], State],
    y: State,
    times: Tensor,
    *,
    rtol: float,
    atol: float,
    counts: Counter[str],
) -> State:
    """The solution of dy/dt = field(t, y) at all `times`, stacked in front.

    dopri5 of orders 5 and 4 controls a local error of `atol + rtol |y|`, and the error
    of the worst sample decides. One step size serves the whole batch (dimension 0 of
    every tensor): to within the tolerance, a sample depends on the batch around it.
    `field` is never asked outside of `times`, the last of which is a step's own end;
    those in between are interpolated. No graph is kept; a field may enable gradients.

    Reference: Dormand and Prince 1980, "A family of embedded Runge-Kutta formulae".

    Args:
        field: dy/dt at `t` of shape (); returns what `y` looks like.
        y: The state at `times[0]`; float64, as tight tolerances stall in float32.
        times: Rising or falling, (N,).
        rtol: Relative tolerance.
        atol: Absolute tolerance.
        counts: Gains `calls` of the field, `accepted` and `rejected` steps.
    """
    odeint = _odeint()
    edges = sorted((float(times[0]), float(times[-1])))

    class Counted:
        def __call__(self, t: Tensor, y: State) -> State:
            counts["calls"] += 1
            return field(t.clamp(*edges), y)

        def callback_accept_step(self, t: Tensor, y: State, dt: Tensor) -> None:
            counts["accepted"] += 1

        def callback_reject_step(self, t: Tensor, y: State, dt: Tensor) -> None:
            counts["rejected"] += 1

    first = y if isinstance(y, Tensor) else y[0]
    times = times.to(first.device, torch.float64)
    options = {"step_t": times[-1:], "norm": _worst, "max_num_steps": MOST}
    try:
        with torch.no_grad():
            solution = odeint(
                Counted(),
                y,
                times,
                rtol=rtol,
                atol=atol,
                method="dopri5",
                options=options,
            )
    except AssertionError as error:  # how torchdiffeq says that steps vanish
        message = f"ode: dopri5 stalled after {counts['calls']} calls ({error})"
        raise NumericsError(message, "larger rtol and atol", "NONFINITE") from error
    return cast(State, solution)


@torch.no_grad()
def encode(
    denoiser: Denoiser, x0: Tensor, *, rtol: float, atol: float, counts: Counter[str]
) -> Tensor:
    """x_1 from which the probability-flow ODE leads to `x0`: its run from 0 to 1.

    The first step, from 0 to the smallest time of the process, is Euler's in the chart
    with the slope at its end, as samplers take it backwards. The state is float64.

    Reference: Song et al. 2021, section 4.3, arXiv:2011.13456.

    Args:
        denoiser: A belief on a process that is a `Flow`.
        x0: Clean data, (B, ...).
        rtol: Relative tolerance.
        atol: Absolute tolerance.
        counts: As in `integrate`.
    """
    process = cast(Flow, denoiser.process)
    zero, floor, end = (
        torch.tensor(t, dtype=torch.float64, device=x0.device)
        for t in (0.0, *process.span)
    )

    def field(clock: Tensor, y: Tensor) -> Tensor:
        t = process.instant(clock).clamp(min=floor)
        x = process.chart(t).scale * y
        return process.slope(denoiser(x, t), x, t)

    a, b, c = (process.chart(t) for t in (zero, floor, end))
    y = x0.double() / a.scale
    counts["calls"] += 1
    y = y + (b.clock - a.clock) * field(b.clock, y)
    times = torch.stack((b.clock, c.clock))
    path = integrate(field, y, times, rtol=rtol, atol=atol, counts=counts)
    return (c.scale * path[-1]).to(x0.dtype)


def _worst(error: Tensor | tuple[Tensor, ...]) -> Tensor:
    """The largest root mean square of a sample, over all parts of the state."""
    parts = (error,) if isinstance(error, Tensor) else error
    squares = [part.reshape(len(part), -1).square().mean(1).max() for part in parts]
    return torch.stack(squares).max().sqrt()


def _odeint() -> Callable[..., Any]:
    try:
        from torchdiffeq import odeint
    except ImportError as error:
        message = "ode: adaptive integration needs the package torchdiffeq"
        raise EnvironmentFault(message, "pip install 'diffusion-cli[ode]'") from error
    return cast(Callable[..., Any], odeint)
