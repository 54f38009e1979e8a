"""Discrete schedules: tables of betas, as DDPM states them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from diffusion_cli.processes.affine import Scales, Schedule, preserving, schedules
from diffusion_cli.settings import require


class Table(Schedule):
    """Variance-preserving tables: log alpha is linear between the times i / levels."""

    def __init__(self, betas: Tensor) -> None:
        self.levels = len(betas)
        self.span = (1 / self.levels, 1.0)
        logs = torch.log1p(-betas).cumsum(0) / 2  # of alpha_1 .. alpha_T
        zero = torch.zeros(1, dtype=torch.float64)
        self._tables = {zero.device: torch.cat((zero, logs))}
        self._last = float(logs[-1])

    def _table(self, device: torch.device) -> Tensor:
        if device not in self._tables:
            self._tables[device] = self._tables[torch.device("cpu")].to(device)
        return self._tables[device]

    def __call__(self, t: Tensor) -> Scales:
        assert self.levels is not None
        table, position = self._table(t.device), t.double() * self.levels
        # 1e-9 keeps i / levels in its own cell whatever the rounding of the division
        cell = (position + 1e-9).floor().clamp(0, self.levels - 1).long()
        rise = table[cell + 1] - table[cell]
        return preserving(table[cell] + (position - cell) * rise, self.levels * rise)

    def time(self, ratio: Tensor) -> Tensor:
        assert self.levels is not None
        table = self._table(ratio.device)
        log_alpha = (-torch.log1p(ratio.double() ** 2) / 2).clamp(min=self._last)
        right = torch.searchsorted(-table, -log_alpha).clamp(1, self.levels)
        left = right - 1
        part = (log_alpha - table[left]) / (table[right] - table[left])
        return (left + part) / self.levels


@schedules("linear")
class Linear(Table):
    """DDPM's linear betas, scaled by 1000 / levels for another number of levels.

    alpha_i^2 = prod_{j <= i} (1 - beta_j),   beta from 1e-4 to 0.02.

    Reference: Ho et al. 2020, section 4, arXiv:2006.11239.

    Args:
        levels: Number of discrete times T.
        first: beta_1 at 1000 levels.
        last: beta_T at 1000 levels.
    """

    def __init__(
        self, levels: int = 1000, first: float = 1e-4, last: float = 0.02
    ) -> None:
        require(levels >= 2, "levels", levels, ">= 2")
        scale = 1000 / levels
        require(0 < first <= last, "first", first, "in (0, last]")
        require(
            last * scale < 1, "last", last, f"below {1 / scale:g} at {levels} levels"
        )
        ends = (first * scale, last * scale)
        super().__init__(torch.linspace(*ends, levels, dtype=torch.float64))


@schedules("cosine")
class Cosine(Table):
    """The cosine schedule, with betas clipped at 0.999.

    beta_i = 1 - f(i / T) / f((i - 1) / T),   f(u) = cos^2((u + 0.008) / 1.008 pi / 2).

    Reference: Nichol and Dhariwal 2021, eq. 17, arXiv:2102.09672.

    Args:
        levels: Number of discrete times T.
        shift: The offset 0.008, which keeps the first betas from vanishing.
    """

    def __init__(self, levels: int = 1000, shift: float = 0.008) -> None:
        require(levels >= 2, "levels", levels, ">= 2")
        require(shift > 0, "shift", shift, "> 0")
        u = torch.linspace(0, 1, levels + 1, dtype=torch.float64)
        f = torch.cos((u + shift) / (1 + shift) * math.pi / 2) ** 2
        super().__init__((1 - f[1:] / f[:-1]).clamp(max=0.999))
