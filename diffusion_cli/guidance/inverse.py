"""Linear inverse problems: samples that agree with a measurement."""

from __future__ import annotations

from typing import Literal, cast

import torch
from torch import Tensor

from diffusion_cli.core import Posterior
from diffusion_cli.denoiser import Context, Denoiser
from diffusion_cli.guidance import Operator, guidances
from diffusion_cli.guidance.gradients import pushed, slope_through
from diffusion_cli.processes.affine import Diffusion, Factor
from diffusion_cli.rng import Rng
from diffusion_cli.settings import require


@guidances("inverse")
class Inverse(Denoiser):
    """Believes in what was measured, y = A x_0 + noise n.

    replace: E[x_0 | x_t] becomes the nearest point with A x_0 = y
    else:    score + scale J^T A^T (r^2 A A^T + noise^2 I)^-1 (y - A E[x_0 | x_t])
    dps:     r = 0;   pgdm: r^2 = sigma^2 sd^2 / (alpha^2 sd^2 + sigma^2)

    J is the Jacobian of E[x_0 | x_t] in x_t. `replace` takes y as exact; `dps` takes
    E[x_0 | x_t] as exact, and is too strong by (r^2 + noise^2) / noise^2 for normal
    data, where `pgdm` is Bayes' rule. Sample i gets measurement i, counted round.

    Reference: Song et al. 2022 (replace), section 3, arXiv:2111.08005; Chung et al.
        2023 (dps), section 3.2, arXiv:2209.14687; Song et al. 2023 (pgdm), section 3,
        OpenReview 9_gsMA8MRKQ.

    Args:
        path: Samples that are measured: a file or a folder.
        operator: A.
        method: How the belief follows y.
        noise: Standard deviation of the noise in y; added here unless `measured`.
        scale: Strength of `dps` and `pgdm`.
        data_std: Standard deviation sd of the data, for `pgdm`.
        measured: The samples are noisy already.
    """

    needs = Diffusion

    def __init__(
        self,
        denoiser: Denoiser,
        context: Context,
        path: str,
        operator: Operator,
        method: Literal["replace", "dps", "pgdm"] = "pgdm",
        noise: float = 0.0,
        scale: float = 1.0,
        data_std: float = 0.5,
        measured: bool = False,
    ) -> None:
        super().__init__()
        require(noise >= 0, "noise", noise, ">= 0")
        require(noise > 0 or method != "dps", "noise", noise, "> 0 for dps")
        require(scale >= 0, "scale", scale, ">= 0")
        require(data_std > 0, "data_std", data_std, "> 0")
        self.inner, self.process = denoiser, denoiser.process
        self.operator, self.method = operator, method
        self.noise, self.scale, self.data_std = noise, scale, data_std
        y = operator(context.samples(path))
        if noise and not measured:
            rng = Rng(0, torch.arange(len(y), device=y.device)).child("measurement")
            y = y + noise * rng.normal(y.shape, y.dtype)
        self.y = y

    def forward(self, x: Tensor, t: Tensor, **cond: Tensor) -> Posterior:
        y = self._measurement(x, cond.get("rows"))
        if self.method == "replace":
            q: Posterior = self.inner(x, t, **cond)
            known = self.operator.back(self.operator(q.mean))
            return q.around(q.mean - known + self.operator.back(y))
        if self.scale == 0:
            return self.inner(x, t, **cond)  # type: ignore[no-any-return]
        process = cast(Diffusion, self.process)
        variance = self._variance(x, t, self.operator.gain(y))

        def agreement(mean: Tensor) -> Tensor:
            misfit = self.operator.back(y - self.operator(mean)) / variance
            return (misfit.detach() * mean).flatten(1).sum(1)

        q, gradient = slope_through(self.inner, agreement, x, t, **cond)
        return q.around(pushed(q, self.scale * gradient, process, x, t))

    def _measurement(self, x: Tensor, rows: Tensor | None) -> Tensor:
        if rows is None:
            rows = torch.arange(len(x))
        return self.y[rows.to(self.y.device) % len(self.y)].to(x)

    def _variance(self, x: Tensor, t: Tensor, gain: float) -> Factor:
        """r^2 + noise^2 / gain: the variance of y, carried back to x_0."""
        k, data = cast(Diffusion, self.process).at(t, x), self.data_std**2
        spread = data * k.sigma**2 / (k.alpha**2 * data + k.sigma**2)
        return (spread if self.method == "pgdm" else 0.0) + self.noise**2 / gain
