"""Training times that follow the loss: importance sampling of the variational bound."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from diffusion_cli.objectives import times
from diffusion_cli.objectives.quantile import Quantile
from diffusion_cli.processes import Process
from diffusion_cli.settings import require


class Cells(NamedTuple):
    """A partition of the times a process knows, as parts of the unit interval."""

    edges: Tensor  # (cells + 1,) from 0 to 1
    span: tuple[float, float]
    levels: int | None

    @property
    def mass(self) -> Tensor:
        """What the uniform law gives to each cell."""
        return self.edges.diff()

    def of(self, t: Tensor) -> Tensor:
        """The cell of each time, int64."""
        low, high = self.span
        part = (t - low) / (high - low)
        if self.levels:
            part = t - 0.5 / self.levels  # the middle of the time's own share
        return torch.searchsorted(self.edges[1:-1], part, right=True)

    def time(self, cell: Tensor, within: Tensor) -> Tensor:
        """The time that lies a part `within` into a cell."""
        low, high = self.span
        part = self.edges[cell] + within * self.mass[cell]
        if not self.levels:
            return low + part * (high - low)
        first, last = (self.edges * self.levels).round()[torch.stack((cell, cell + 1))]
        index = (part * self.levels).floor().maximum(first).minimum(last - 1)
        return (index + 1) / self.levels


@times("loss_aware")
class LossAware(Quantile):
    """Times in proportion to the root mean square of the recent losses near them.

    p(cell) ~ sqrt(mean of the last losses squared),   weight = uniform / p

    The law is uniform until every cell has its history, and a little uniform ever
    after. The weight undoes the preference, so only the variance of the gradient
    changes. Losses and law belong to the step, whatever its micro-batches.

    Reference: Nichol and Dhariwal 2021, eq. 18, arXiv:2102.09672.

    Args:
        cells: Number of stretches of time with one probability each; at most the
            process's own times.
        history: Losses that a cell remembers.
        mix: Part of the uniform law.
        stratified: Spread the times of a step evenly.
    """

    losses: Tensor
    seen: Tensor

    def __init__(
        self,
        cells: int = 100,
        history: int = 10,
        mix: float = 0.001,
        stratified: bool = False,
    ) -> None:
        super().__init__(stratified)
        require(cells >= 1, "cells", cells, ">= 1")
        require(history >= 1, "history", history, ">= 1")
        require(0 < mix <= 1, "mix", mix, "in (0, 1]")
        self.history, self.mix = history, mix
        # the last losses of each cell, and how many there ever were
        self.register_buffer("losses", torch.zeros(cells, history, dtype=torch.float64))
        self.register_buffer("seen", torch.zeros(cells, dtype=torch.int64))
        self.cells: Cells | None = None  # of the process last asked for

    def quantile(self, process: Process, u: Tensor) -> Tensor:
        cells = self.cells = self._cells(process)
        law = self._law(cells)
        # a product, as a cumulative sum of floats is not reproducible on every device
        total = law.new_ones(len(law), len(law)).tril() @ law
        cell = torch.searchsorted(total[:-1], u, right=True)
        return cells.time(cell, (u - (total - law)[cell]) / law[cell])

    def correction(self, t: Tensor) -> Tensor | float:
        if self.cells is None:
            return 1.0
        return (self.cells.mass / self._law(self.cells))[self.cells.of(t)]

    @torch.no_grad()
    def observe(self, process: Process, t: Tensor, losses: Tensor) -> None:
        cell = self._cells(process).of(t)
        apart = cell[:, None] == torch.arange(len(self.seen), device=t.device)
        order = apart.cumsum(0)  # (B, cells): which of its cell a sample is, from 1
        rank = order.gather(1, cell[:, None])[:, 0] - 1
        count = order[-1]
        # a cell keeps its last losses: of those that meet in one place, the last
        kept = (rank >= count[cell] - self.history) & losses.isfinite()
        place = cell * self.history + (self.seen[cell] + rank) % self.history
        place = torch.where(kept, place, self.losses.numel())  # or beyond the end
        memory = torch.cat((self.losses.flatten(), self.losses.new_zeros(1)))
        memory = memory.index_put((place,), losses.double())
        self.losses.copy_(memory[:-1].view_as(self.losses))
        self.seen += count

    def _cells(self, process: Process) -> Cells:
        levels, most = process.levels, len(self.seen)
        count = min(most, levels or most)
        index = torch.arange(count + 1, dtype=torch.float64, device=self.seen.device)
        edges = index / count
        if levels:
            edges = (edges * levels - 1e-6).ceil() / levels
        return Cells(edges, process.span, levels)

    def _law(self, cells: Cells) -> Tensor:
        """The probability of every cell."""
        mass = cells.mass
        count = len(mass)
        # the smallest number keeps a law of losses that are all zero
        tiny = torch.finfo(torch.float64).tiny
        mean = self.losses[:count].square().mean(1).sqrt() + tiny
        law = mass * mean
        law = (1 - self.mix) * law / law.sum() + self.mix * mass
        ready = (self.seen[:count] >= self.history).all()
        return torch.where(ready, law, mass)
