"""Beliefs of other runs: what they were trained on, and where they meet this one."""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion_cli.core import Spec
from diffusion_cli.denoiser import Denoiser, Model
from diffusion_cli.errors import ConfigError
from diffusion_cli.processes.affine import Affine, like


def data_of(denoiser: Denoiser) -> Spec:
    """What the innermost model of a denoiser was trained on."""
    specs = (getattr(module, "spec", None) for module in denoiser.modules())
    return next(spec for spec in specs if isinstance(spec, Spec))


def agree(denoiser: Denoiser, other: Model, run: str) -> None:
    """Refuse a run on data of another shape, or of another kind of process."""
    here, there = data_of(denoiser).shape, other.spec.shape
    if here != there:
        raise ConfigError(
            f"guidance.run: `{run}` knows samples of shape {there}, the model {here}",
            "guidance.run=<a run on the same data>",
        )
    if type(other.process) is not type(denoiser.process):
        raise ConfigError(
            f"guidance.run: `{run}` has another kind of process than the model",
            "train it with the same process; the schedule may differ",
        )


def carried(x: Tensor, t: Tensor, here: Affine, there: Affine) -> tuple[Tensor, Tensor]:
    """The state at the same sigma / alpha on another path, and its time there.

    x' = x alpha' / alpha, exact for affine paths. Noise levels that the other path does
    not reach are taken at its end, at the scale of its states there.
    """
    a, same = here.schedule(t), there.schedule(t)
    if same.alpha.equal(a.alpha) and same.sigma.equal(a.sigma):
        return x, t
    ratio, most = a.sigma / a.alpha, there.end.sigma / there.end.alpha
    reached = ratio < most.to(ratio)
    then = there.schedule.time(torch.where(reached, ratio, 1.0))
    then = torch.where(reached, then, there.span[1]).clamp(min=there.span[0])
    b = there.schedule(then)
    square = (b.alpha**2 + b.sigma**2) / (a.alpha**2 + a.sigma**2)
    return x * like(square.sqrt(), x), then
