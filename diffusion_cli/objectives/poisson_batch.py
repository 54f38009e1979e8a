"""PFGM's own objective: the field of a big batch."""

from __future__ import annotations

import math
from typing import NamedTuple, cast

import torch
from torch import Tensor

from diffusion_cli.denoiser import Model
from diffusion_cli.objectives import Objective, objectives
from diffusion_cli.processes.affine import like
from diffusion_cli.processes.rays import Charged
from diffusion_cli.rng import Rng
from diffusion_cli.settings import require

LIMIT = 0.7  # of the exponents, for states that begin very near to the data


class Reach(NamedTuple):
    """How far states are spread: largest exponent, z and distance."""

    M: int
    z: float
    distance: float


def reach(norm: float, d: int, spread: float, tau: float) -> Reach:
    """The paper's rule for data of `d` dimensions in a ball of radius `norm`.

    M = 0.75 ln(norm^2 / (2 sqrt(d) spread^2)) / ln(1 + tau), rounded up

    Reference: Xu et al. 2022, appendix B.1.1, arXiv:2209.11178.
    """
    ratio = norm**2 / (2 * math.sqrt(d) * spread**2)
    M = int(0.75 * math.log(ratio) / math.log1p(tau)) + 1
    scale = spread * (1 + tau) ** M
    return Reach(M, math.sqrt(2 / math.pi) * scale, math.sqrt(d) * scale)


@objectives("poisson_batch")
class PoissonBatch(Objective):
    """The squared error of the normalised field that a big batch of data makes.

    y = x_0 + |e_x| (1 + tau)^m u,   z = |e_z| (1 + tau)^m,   m ~ U(0, M)
    target: the field at (y, z) of x_0 and all samples of the reference

    with normal e of variance spread^2 and a direction u. It is biased: in the weights,
    as x_0 always is among the charges and few others are; in the norm, as the mean of
    normalised fields is not the normalised mean; in (y, z), whose law given z is that
    of the process only inside of the range of scales. `denoise` with exact Student-t
    draws (process=pfgmpp process.D=1) has none of the three.

    Reference: Xu et al. 2022, algorithm 1 and eq. 5, arXiv:2209.11178.

    Args:
        reference: Samples per step that make the field.
        spread: Standard deviation of e.
        tau: Growth of the scale per unit of m.
        norm: Largest norm of the data, which sets M by the paper's rule; null takes the
            M that reaches the noise at t = 1.
    """

    needs = Charged

    def __init__(
        self,
        reference: int = 4096,
        spread: float = 0.01,
        tau: float = 0.03,
        norm: float | None = None,
    ) -> None:
        super().__init__()
        require(reference >= 1, "reference", reference, ">= 1")
        require(spread > 0, "spread", spread, "> 0")
        require(tau > 0, "tau", tau, "> 0")
        require(norm is None or norm > spread, "norm", norm, "> spread, or null")
        self.reference, self.spread, self.tau = reference, spread, tau
        self.norm = norm
        self.times: Tensor | None = None

    def fits(self, model: Model) -> str | None:
        if model.parametrisation.own:
            return None
        return "trains a field, which only field predicts"

    def forward(
        self,
        model: Model,
        x0: Tensor,
        rng: Rng,
        reference: Tensor | None = None,
        reference_label: Tensor | None = None,
        **cond: Tensor,
    ) -> Tensor:
        assert reference is not None, "the loader gives it"
        process = cast(Charged, model.process)
        t, y = self.states(process, x0.double(), rng)
        k = process.scales(t)
        mates = torch.ones(len(x0), len(reference), dtype=torch.bool, device=y.device)
        if reference_label is not None:
            mates = cond["label"][:, None] == reference_label
        z = like(k.sigma / k.alpha, y)
        mean = self.mean(process, y, z, x0.double(), reference, mates)
        x = (like(k.alpha, y) * y).to(x0.dtype)
        out = model.output(x, t, **cond)
        self.times = t
        reading = model.parametrisation
        return reading.errors(out, mean.to(x0.dtype), x, t, process).float()

    def states(self, process: Charged, x0: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
        """Times (B,) and y = x / alpha, of the paper's law."""
        d, count = x0[0].numel(), len(x0)
        normal = rng.child("charge").normal((count, d + 1), torch.float64)
        largest = self.exponent(process, d)
        u = rng.child("scale").uniform((count, 1))
        near = normal[:, -1:].abs() < 0.5  # z < 0.005 in the paper
        scale = (1 + self.tau) ** (largest * torch.where(near, LIMIT * u, u))
        z = self.spread * normal[:, -1].abs() * scale[:, 0]
        t = process.schedule.time(z).clamp(*process.span)
        way = rng.child("direction").normal((count, d), torch.float64)
        length = self.spread * normal[:, :-1].norm(dim=1, keepdim=True) * scale
        y = x0.flatten(1) + length * way / way.norm(dim=1, keepdim=True)
        return t, y.reshape(x0.shape)

    def exponent(self, process: Charged, d: int) -> float:
        """M."""
        if self.norm is not None:
            return reach(self.norm, d, self.spread, self.tau).M
        end = float(process.end.sigma / process.end.alpha)
        least = math.sqrt(2 / math.pi) * self.spread
        return max(0.0, math.log(end / least) / math.log1p(self.tau))

    def mean(
        self,
        process: Charged,
        y: Tensor,
        z: Tensor,
        own: Tensor,
        others: Tensor,
        mates: Tensor,
    ) -> Tensor:
        """The posterior mean at (y, z) if `own` (B,) and `others` (N,) are all data."""
        at, first, rest = (each.double().flatten(1) for each in (y, own, others))
        z = z.reshape(-1, 1)
        square = torch.cdist(at, rest, compute_mode="donot_use_mm_for_euclid_dist") ** 2
        itself = (at - first).square().sum(1, keepdim=True)
        logs = process.log_kernel(torch.cat((itself, square), 1) / z**2, at.shape[1])
        among = torch.cat((torch.ones_like(mates[:, :1]), mates), 1)
        share = logs.masked_fill(~among, -math.inf).softmax(1)
        return (share[:, :1] * first + share[:, 1:] @ rest).reshape(y.shape)
