"""Guidance by a gradient: p(x_t) is multiplied by the exponential of a log-weight."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Literal, cast

import torch
from torch import Tensor

from diffusion_cli.core import Posterior
from diffusion_cli.denoiser import Denoiser
from diffusion_cli.processes.affine import Affine, Diffusion, like
from diffusion_cli.settings import require

At = Literal["noisy", "clean"]
Form = Literal["score", "mean"]


def slope(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The gradient of a function with a value per sample, at least in float32."""
    with torch.enable_grad():
        x = x.detach().to(torch.promote_types(x.dtype, torch.float32)).requires_grad_()
        (gradient,) = torch.autograd.grad(function(x).sum(), x)
    return gradient


def slope_through(
    denoiser: Denoiser,
    function: Callable[[Tensor], Tensor],
    x: Tensor,
    t: Tensor,
    **cond: Tensor,
) -> tuple[Posterior, Tensor]:
    """The belief at x, and the gradient in x of a function of its mean.

    Where somebody outside differentiates too, the belief stays differentiable.
    """
    nested = torch.is_grad_enabled() and x.requires_grad
    with torch.enable_grad():
        z = x if nested else x.detach().requires_grad_()
        q = denoiser(z, t, **cond)
        value = function(q.mean).sum()
        (gradient,) = torch.autograd.grad(value, z, retain_graph=nested)
    return q if nested else q.around(q.mean.detach()), gradient


def pushed(
    q: Posterior, score: Tensor, process: Affine, x: Tensor, t: Tensor
) -> Tensor:
    """E[x_0 | x_t] where the score is larger by `score`: mean + sigma^2 / alpha score.

    Where no signal is left (alpha = 0) the belief owes nothing to x_t, and stays.
    """
    k = process.schedule(t)
    factor = like(torch.where(k.alpha > 0, k.sigma**2 / k.alpha, 0.0), x)
    return q.mean + (factor * score).to(q.mean)


class Tilt(Denoiser):
    """Shared by guidance with a differentiable log-weight on noisy or clean samples."""

    needs = Diffusion

    def __init__(
        self, denoiser: Denoiser, scale: float, at: At, form: Form = "score"
    ) -> None:
        super().__init__()
        require(scale >= 0, "scale", scale, ">= 0")
        self.inner, self.process = denoiser, denoiser.process
        self.scale, self.at, self.form = scale, at, form
        self.tilts = form == "mean"

    @abstractmethod
    def noisy(self, x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        """The log-weight of x_t, (B,)."""

    @abstractmethod
    def clean(self, x0: Tensor, **cond: Tensor) -> Tensor:
        """The log-weight of a clean sample, (B,)."""

    def forward(self, x: Tensor, t: Tensor, **cond: Tensor) -> Posterior:
        if self.scale == 0:
            return self.inner(x, t, **cond)  # type: ignore[no-any-return]
        if self.at == "clean":
            q, gradient = slope_through(
                self.inner, lambda x0: self.clean(x0, **cond), x, t, **cond
            )
        else:
            q = self.inner(x, t, **cond)
            gradient = slope(lambda z: self.noisy(z, t, **cond), x)
        gradient = self.scale * gradient
        if self.form == "mean":
            return q.tilted(gradient.to(q.mean))
        process = cast(Diffusion, self.process)
        return q.around(pushed(q, gradient, process, x, t))
