"""One term of the variational bound on -log p(x_0), for any belief with a variance.

The chain goes down in steps of 1/T and ends in a decoder,

    -log p(x_0) <= KL(prior) + sum_t KL(q(x_s | x_t, x_0) || p(x_s | x_t)) + decoder.

With the variance V of the true step, and what it moves by an error of x_0,

    w  = gamma^2 / V = SNR_s - SNR_t,
    KL = (log(1 + w C) + w ((x_0 - mean)^2 - C) / (1 + w C)) / 2,

per coordinate, for the step that a belief N(mean, C) makes.

Reference: Ho et al. 2020, section 3, arXiv:2006.11239; Nichol and Dhariwal 2021,
section 3.1, arXiv:2102.09672.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.special import log_ndtr

from diffusion_cli.core import Posterior, Spec
from diffusion_cli.processes.affine import Diffusion, like

FAR = 1e9  # standard deviations: the end of the real line


def bound(
    q: Posterior, x0: Tensor, t: Tensor, process: Diffusion, spec: Spec
) -> Tensor:
    """The bound's term of each sample's time, in nats per coordinate, times the steps.

    Its mean over uniform times is the bound without the prior's term: (B,). T is the
    process's `levels`, or 1000. Times less than one step above the smallest belong to
    the decoder: the belief itself for real data, and for images of
    `spec.codec["levels"]` levels the probability that it gives to the cell around a
    level, the outermost cells being open. The decoder is no surer than the second step
    of a belief without a variance.
    """
    low, high = process.span
    levels = process.levels or 1000
    steps = process.levels or (high - low) * levels
    first = t < low + (1 - 1e-6) / levels
    gain = _snr(process, (t - 1 / levels).clamp(min=low)) - _snr(process, t)
    gain = like(gain.masked_fill(first, 0), x0)
    var = torch.as_tensor(q.var).to(x0).expand_as(x0)
    error = (x0 - q.mean).square()
    kl = (torch.log1p(gain * var) + gain * (error - var) / (1 + gain * var)) / 2
    decoded = like(first, x0) > 0
    # the other rows get a belief without a fault, so that their gradient is no NaN
    mean = torch.where(decoded, q.mean, x0)
    # (sigma_s / alpha_s)^2 (1 - SNR_t / SNR_s), on the host: nobody waits for it
    ends = _snr(process, torch.tensor((low, low + 1 / levels), dtype=torch.float64))
    least = float((1 - ends[1] / ends[0]) / ends[0])
    spread = torch.where(decoded, var, 1.0).clamp(min=least)
    cells = spec.codec.get("levels")
    nll = _nll(x0, mean, spread) if cells is None else _cell(x0, mean, spread, cells)
    terms = torch.where(decoded, nll.to(kl), kl)
    total: Tensor = steps * terms.flatten(1).mean(1)
    return total


def _snr(process: Diffusion, t: Tensor) -> Tensor:
    k = process.scales(t)
    return (k.alpha / k.sigma) ** 2


def _nll(x0: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    return ((x0 - mean).square() / var + (2 * math.pi * var).log()) / 2


def _cell(x0: Tensor, mean: Tensor, var: Tensor, levels: int) -> Tensor:
    """-log of what N(mean, var) gives to the cell of x_0 on a grid of [-1, 1]."""
    half = 1 / (levels - 1)
    std, gap = var.double().sqrt(), (x0 - mean).double()
    low = torch.where(x0 < half - 1, -FAR, (gap - half) / std)
    high = torch.where(x0 > 1 - half, FAR, (gap + half) / std)
    # of the two tails the thin one, where a difference of logarithms is exact
    turn = low + high > 0
    low, high = torch.where(turn, -high, low), torch.where(turn, -low, high)
    top = log_ndtr(high)
    mass: Tensor = top + torch.log1p(-torch.exp(log_ndtr(low) - top))
    return -mass
