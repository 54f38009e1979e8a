"""Where a model errs."""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion_cli.metrics import Batch, Metric, Result, Subject, metrics
from diffusion_cli.metrics.levels import beliefs, columns, times
from diffusion_cli.metrics.plots import chart
from diffusion_cli.metrics.summaries import given, summary
from diffusion_cli.settings import require


@metrics("loss_per_noise_level")
class LossPerNoiseLevel(Metric):
    """The error of the belief about x_0 at every noise level, as a curve.

    loss(t) = E[-log q(x_0 | x_t)], the mean over coordinates

    For a point this is (x_0 - E[x_0 | x_t])^2, for tokens the cross-entropy in nats.
    No weights of the training: models of different objectives can be compared, level by
    level. Conditional on the labels of the data; without guidance.

    Reference: Karras et al. 2022, figure 5a, arXiv:2206.00364.

    Args:
        n: Number of data.
        times: Number of times, even over the span of the process.
    """

    def __init__(self, n: int = 1000, times: int = 20) -> None:
        require(n >= 2, "n", n, ">= 2")
        require(times >= 2, "times", times, ">= 2")
        self.n, self.times = n, times

    def __call__(self, subject: Subject) -> Result:
        process = subject.model.process
        t = times(process, self.times)

        def work(batch: Batch, _: int) -> Tensor:
            found = beliefs(subject.model, batch, t)
            return torch.stack([q.nll(x0).flatten(1).mean(1) for _, x0, q in found], 1)

        losses = subject.each(self.n, work)  # (N, T)
        table = [
            row | summary("loss", values)
            for row, values in zip(columns(process, t), losses.T, strict=True)
        ]
        mean = losses.mean(1)
        x = "noise" if "noise" in table[0] else "t"
        points = [(row[x], row["loss"], row["loss_se"]) for row in table]
        label = "sigma / alpha" if x == "noise" else "t"
        picture = chart(
            {"loss": points},
            label,
            "loss",
            log_x=x == "noise",
            log_y=min(row["loss"] for row in table) > 0,
        )
        return Result(
            summary("loss", mean),
            table,
            (f"{len(mean)} data at {len(t)} times, even in t; without weights",),
            {"loss_per_noise_level.png": picture},
            given(subject.model.spec),
        )
