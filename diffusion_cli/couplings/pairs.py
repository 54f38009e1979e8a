"""Stored pairs: samples with the noise from which they were drawn."""

from __future__ import annotations

from torch import Tensor

from diffusion_cli.couplings import Coupled, Coupling, couplings
from diffusion_cli.rng import Rng


@couplings("pairs")
class Pairs(Coupling):
    """Each sample of `dataset=pairs` with its own noise: rectified flow, once more.

    n_i is drawn again from (seed, i), as `dcli sample` drew it; nothing is stored. With
    a deterministic sampler (n_i, x_0i) are the ends of one trajectory. Straight lines
    between them cross less, so the next flow needs fewer steps: "reflow".

    Reference: Liu et al. 2023, section 2.2, arXiv:2209.03003.
    """

    paired = True

    def stream(self, rng: Rng, **cond: Tensor) -> Rng:
        seed = int(cond["pair_seed"][0])  # of all samples
        return Rng(seed, cond["pair_row"]).child("sample").child("prior")

    def __call__(self, x0: Tensor, noise: Tensor, rng: Rng, **cond: Tensor) -> Coupled:
        kept = {key: value for key, value in cond.items() if "pair_" not in key}
        return x0, noise, kept
