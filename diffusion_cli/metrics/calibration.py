"""Whether a posterior mean spreads as it should."""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion_cli.metrics import Metric, Result, Subject, metrics
from diffusion_cli.metrics.levels import beliefs, columns, times
from diffusion_cli.metrics.plots import chart
from diffusion_cli.metrics.summaries import continuous
from diffusion_cli.settings import require


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
        moments = [Moments(model.spec.numel) for _ in t]
        for level, x0, q in beliefs(subject, self.n, t):
            moments[level].update(x0, q.mean, q.var)
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
        return Result(values, table, (note,), {"calibration.png": picture})


class Moments:
    """Sums of data and beliefs, by coordinate, in float64.

    Args:
        d: Number of coordinates.
    """

    def __init__(self, d: int) -> None:
        self.count, self.sums = 0, torch.zeros(6, d, dtype=torch.float64)
        self.varied = False

    def update(self, x0: Tensor, mean: Tensor, var: Tensor | float) -> None:
        """Take in a batch and what is believed of it."""
        x, m = x0.double().flatten(1), mean.double().flatten(1)
        self.varied |= isinstance(var, Tensor)
        v = torch.as_tensor(var, dtype=torch.float64, device=x.device).expand_as(x0)
        parts = (x, m, x * x, m * m, (x - m).square(), v.flatten(1))
        self.sums = self.sums.to(x.device)
        self.sums += torch.stack([part.sum(0) for part in parts])
        self.count += len(x)

    def read(self) -> dict[str, float]:
        """A row of the table."""
        x, m, x2, m2, error, believed = self.sums / self.count
        whole = float((x2 - x.square()).sum())
        explained = float((m2 - m.square()).sum()) / whole
        residual = float(error.sum()) / whole
        row = {"explained": explained, "residual": residual}
        if self.varied:
            row["believed"] = float(believed.sum()) / whole
        return row | {"gap": explained + residual - 1}
