"""Whether a posterior mean spreads as it should."""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion_cli.metrics import Metric, Result, Subject, metrics
from diffusion_cli.metrics.levels import beliefs, columns, times
from diffusion_cli.metrics.plots import chart
from diffusion_cli.metrics.summaries import continuous, given
from diffusion_cli.settings import require
from diffusion_cli.world import World


@metrics("calibration")
class Calibration(Metric):
    """Variance of the posterior mean against what it leaves over, at every noise level.

    Var[x_0] = Var[D] + E|x_0 - D|^2   for D = E[x_0 | x_t]

    explained = Var[D], residual = E|x_0 - D|^2, both over Var[x_0]; gap is their sum
    less 1: above 0 the model is too sure, its means vary more than the data allow;
    below 0 it holds back. A belief with a variance of its own has it as `believed`, to
    be compared with the residual. Conditional on the labels; without guidance.

    No reference: the law of total variance.

    Args:
        n: Number of data.
        times: Number of times, even over the span of the process.
    """

    def __init__(self, n: int = 2000, times: int = 20) -> None:
        require(n >= 2, "n", n, ">= 2")
        require(times >= 2, "times", times, ">= 2")
        self.n, self.times = n, times

    def __call__(self, subject: Subject) -> Result:
        model = subject.model
        continuous(model.spec, "calibration")
        t = times(model.process, self.times)
        moments = [Moments(model.spec.numel, subject.device) for _ in t]
        for batch in subject.world.share(subject.data(self.n)):
            for level, x0, q in beliefs(model, batch, t):
                moments[level].update(x0, q.mean, q.var)
        for each in moments:
            each.share(subject.world)
        table = [
            row | each.read()
            for row, each in zip(columns(model.process, t), moments, strict=True)
        ]
        gaps = [row["gap"] for row in table]
        worst = max(range(len(gaps)), key=lambda i: abs(gaps[i]))
        values = {
            "gap": sum(map(abs, gaps)) / len(gaps),
            "gap_worst": gaps[worst],
            "gap_worst_t": table[worst]["t"],
        }
        x = "noise" if "noise" in table[0] else "t"
        shown: list[str] = [
            k for k in ("explained", "residual", "believed") if k in table[0]
        ]
        curves: dict[str, list[tuple[float, float, float]]]
        curves = {k: [(row[x], row[k], 0.0) for row in table] for k in shown}
        curves["sum"] = [(row[x], 1 + row["gap"], 0.0) for row in table]
        label = "sigma / alpha" if x == "noise" else "t"
        picture = chart(curves, label, "share of Var[x_0]", log_x=x == "noise")
        what = "gap: the mean of |explained + residual - 1|"
        note = f"{self.n} data at {len(t)} times, even in t; {what}"
        files = {"calibration.png": picture}
        return Result(values, table, (note,), files, given(model.spec))


class Moments:
    """Sums of data and beliefs, by coordinate, in float64.

    Args:
        d: Number of coordinates.
        device: Where the beliefs are.
    """

    def __init__(self, d: int, device: torch.device) -> None:
        # x_0, D, their squares, that of x_0 - D, the variance believed, how many
        self.sums = torch.zeros(7, d, dtype=torch.float64, device=device)
        self.varied = False

    def update(self, x0: Tensor, mean: Tensor, var: Tensor | float) -> None:
        """Take in a batch and what is believed of it."""
        x, m = x0.double().flatten(1), mean.double().flatten(1)
        self.varied |= isinstance(var, Tensor)
        v = torch.as_tensor(var, dtype=torch.float64, device=x.device).expand_as(x0)
        one = torch.ones_like(x)
        parts = (x, m, x * x, m * m, (x - m).square(), v.flatten(1), one)
        self.sums += torch.stack([part.sum(0) for part in parts])

    def share(self, world: World) -> None:
        """Make the sums those over all processes."""
        world.sum([self.sums])
        self.varied = world.agree(int(self.varied)) > 0

    def read(self) -> dict[str, float]:
        """A row of the table."""
        x, m, x2, m2, error, believed, _ = self.sums / self.sums[-1]
        whole = float((x2 - x.square()).sum())
        explained = float((m2 - m.square()).sum()) / whole
        residual = float(error.sum()) / whole
        row = {"explained": explained, "residual": residual}
        if self.varied:
            row["believed"] = float(believed.sum()) / whole
        return row | {"gap": explained + residual - 1}
