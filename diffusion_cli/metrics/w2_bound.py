"""A bound on the Wasserstein distance by score matching."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from diffusion_cli.errors import ConfigError
from diffusion_cli.metrics import Metric, Result, Subject, metrics
from diffusion_cli.metrics.points import available, optimal_transport, sets
from diffusion_cli.metrics.summaries import continuous, given
from diffusion_cli.metrics.transport import Bound, Empirical, Form, bound, sweep
from diffusion_cli.processes.affine import Diffusion
from diffusion_cli.settings import require

FLAT = 16  # dimensions up to which the exact W2 of points says something


@metrics("w2_bound")
class W2Bound(Metric):
    """How far the samples can be from the data, by the error of the score.

    W2(p_0, q_0) <= int g^2 I(t) e(t) dt + I(T) W2(p_T, q_T),   e^2 = E|score error|^2
    I(t) = exp int_0^t (L_f + L_s g^2) dr

    for the SDE; for the ODE with g^2 / 2 in place of g^2. L_s, the one-sided Lipschitz
    constant of the score, is estimated from below by power iteration on samples of p_t,
    so the number is a heuristic, not a certificate. The prior's W2 is at most alpha(T)
    sqrt(E|x_0|^2), and stopping at the floor adds its own. Below 17 dimensions the
    exact W2 of n points stands beside it, if the package POT is there.

    Reference: Kwon et al. 2022, theorem 1, arXiv:2212.06359.

    Args:
        n: Number of data, in the expectations and in the exact W2.
        form: The sampler it is for, which decides g^2 / 2 or g^2.
        times: Times of the integrals, even over the process's span.
        iterations: Steps of power iteration; three network calls and a vector-Jacobian
            product each.
        reference: Data whose exact score counts as true; 0 takes the error of
            denoising score matching, which is larger by what no score could know.
    """

    needs = Diffusion

    def __init__(
        self,
        n: int = 512,
        form: Form = "ode",
        times: int = 100,
        iterations: int = 5,
        reference: int = 0,
    ) -> None:
        require(n >= 2, "n", n, ">= 2")
        require(times >= 2, "times", times, ">= 2")
        require(iterations >= 0, "iterations", iterations, ">= 0")
        enough = reference == 0 or reference >= n
        require(enough, "reference", reference, f"0, or >= n = {n}")
        self.n, self.form, self.times = n, form, times
        self.iterations, self.reference = iterations, reference

    def __call__(self, subject: Subject) -> Result:
        model = subject.model
        continuous(model.spec, "w2_bound")
        process = cast(Diffusion, model.process)
        times = self._times(process)
        low, high = float(times[0]), float(times[-1])
        truth = self._truth(subject, process)
        data = subject.data(self.n)
        found = bound(
            process, sweep(model, truth, data, times, self.iterations), self.form
        )
        rows = torch.stack(list(found.columns.values()), 1).tolist()
        values = {
            "w2_bound": found.total,
            "transport": found.transport,
            "offset": found.offset,
            "floor": found.floor,
        }
        notes = self._notes(found, low, high)
        if model.spec.numel <= FLAT and available():
            points = sets(subject, self.n, "w2_bound")
            values["w2"] = optimal_transport(points.samples, points.data)
            values["w2_floor"] = optimal_transport(points.other, points.data)
            values["ratio"] = found.total / values["w2"]
            notes.append(
                f"exact W2 of {len(points.data)} points and of data, w2_floor, below "
                "which it cannot fall; ratio: the bound over W2"
            )
        elif model.spec.numel <= FLAT:
            notes.append("no exact W2 beside it: pip install 'diffusion-cli[ot]'")
        table = [dict(zip(found.columns, row, strict=True)) for row in rows]
        return Result(values, table, tuple(notes), protocol=given(model.spec))

    def _times(self, process: Diffusion) -> Tensor:
        """Rising times, even in log(sigma / alpha): the integrands are like 1 / t."""
        low, high = process.span
        if not process.bounded:
            high -= low  # alpha vanishes at 1, where the score's equations do not hold
        ends = process.schedule(torch.tensor([low, high], dtype=torch.float64))
        first, last = (ends.sigma / ends.alpha).log().tolist()
        even = torch.linspace(first, last, self.times, dtype=torch.float64)
        times = process.schedule.time(even.exp())
        times[0], times[-1] = low, high
        return times

    def _truth(self, subject: Subject, process: Diffusion) -> Empirical | None:
        if not self.reference:
            return None
        batches = list(subject.data(self.reference))
        if batches[0].cond:
            message = "metric.w2_bound.reference: is for runs without conditions"
            raise ConfigError(message, "metric.reference=0")
        return Empirical(process, torch.cat([x0 for x0, _, _ in batches]))

    def _notes(self, found: Bound, low: float, high: float) -> list[str]:
        exact = f"e2 against the exact score of {self.reference} data, the law p_0"
        upper = "e2 is that of denoising score matching: an upper bound on the error"
        return [
            "heuristic: L_s is a lower estimate, power iteration on n points per time",
            exact if self.reference else upper,
            f"for the exact {self.form.upper()} from t = {high:g} to {low:g} without "
            "guidance; a sampler's own steps and the last, to 0, come on top",
        ]
