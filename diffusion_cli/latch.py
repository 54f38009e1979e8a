"""The non-finite latch: remembers, on the device, the step that went wrong."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from diffusion_cli.errors import NumericsError


class NonFinite(NumericsError):
    """A loss or a gradient is not finite.

    Args:
        step: The step that was refused, counted from 1.
        losses: Losses of its batch, (B,).
        times: Times of its batch, (B,); NaN where the objective names none.
        norm: Norm of its gradient.
        lr: Learning rate of the run at that step.
    """

    def __init__(
        self, step: int, losses: Tensor, times: Tensor, norm: float, lr: float
    ) -> None:
        self.step, self.losses, self.times, self.norm = step, losses, times, norm
        self.rows = (~losses.isfinite()).nonzero().flatten().tolist()
        shown = self.rows[:8]
        which = "every loss is finite, the gradient is not"
        if self.rows:
            at = " ".join(f"{float(times[row]):.4g}" for row in shown)
            which = f"times {at}, rows {' '.join(map(str, shown))}"
            which += f" and {len(self.rows) - 8} more" if len(self.rows) > 8 else ""
        super().__init__(
            f"trainer: NONFINITE step {step}: loss={float(losses.mean()):.4g}, "
            f"grad_norm={norm:.4g}, lr={lr:.4g}, {which}",
            "lower optimizer.lr, or trainer.precision=fp32",
            "NONFINITE",
        )

    def report(self, indices: list[int]) -> dict[str, object]:
        """What it takes to replay the batch; `indices` are its samples in the data."""
        bad = ", ".join(str(indices[row]) for row in self.rows[:8])
        self.message += f"; samples of the data set {bad}" if bad else ""
        return {
            "step": self.step,
            "samples": indices,
            "losses": [str(loss) for loss in self.losses.tolist()],
            "times": [str(t) for t in self.times.tolist()],
            "bad_rows": self.rows,
        }


class Latch:
    """Closes for a step that is not finite; after `allowed` of them, for good.

    `closed` is what optimisers read as `found_inf`: they leave everything as it is
    while it is 1. So no bad value is ever taken in, although the host looks only when
    it logs.
    """

    def __init__(self, batch: int, device: torch.device, allowed: int = 0) -> None:
        self.allowed = allowed
        self.closed = torch.zeros((), device=device)
        self.skipped = torch.zeros((), dtype=torch.int64, device=device)
        self._step = torch.zeros((), dtype=torch.int64, device=device)
        self._report = torch.zeros(2, batch, dtype=torch.float64, device=device)
        self._norm = torch.zeros((), device=device)

    def update(self, step: int, losses: Tensor, times: Tensor, norm: Tensor) -> None:
        """Look at one step, counted from 1; `losses` and `times` are (B,)."""
        over = self.skipped > self.allowed
        bad = ~(losses.isfinite().all() & norm.isfinite())
        new = bad & ~over
        report = torch.stack((losses.double(), times.double()))
        self._report = torch.where(new, report, self._report)
        self._step = torch.where(new, step, self._step)
        self._norm = torch.where(new, norm.float(), self._norm)
        self.skipped = self.skipped + new
        self.closed = (bad | over).float()

    @contextmanager
    def held(self, tensors: Iterable[Tensor]) -> Iterator[None]:
        """Undo what is done to `tensors` meanwhile, if it is closed; does not wait."""
        kept = [(tensor, tensor.clone()) for tensor in tensors]
        yield
        for tensor, before in kept:
            tensor.copy_(torch.where(self.closed > 0, before, tensor))

    def check(self, lr: float) -> int:
        """How many steps were skipped; `NonFinite` if it closed for good; waits."""
        skipped = int(self.skipped.item())
        if skipped > self.allowed:
            losses, times = self._report.cpu()
            step = int(self._step.item())
            raise NonFinite(step, losses, times, self._norm.item(), lr)
        return skipped
