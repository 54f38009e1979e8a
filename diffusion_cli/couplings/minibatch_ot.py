"""Optimal transport between the data and the noise of a block of a step."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from diffusion_cli.couplings import Coupled, Coupling, couplings
from diffusion_cli.errors import ConfigError, EnvironmentFault
from diffusion_cli.rng import Rng
from diffusion_cli.settings import require


@couplings("minibatch_ot")
class MinibatchOT(Coupling):
    """Within blocks of a step, noise goes to the datum to which its transport is cheap.

    exact:     the permutation p that minimises sum |x_0i - n_p(i)|^2
    sinkhorn:  n_j ~ P_ij, P the plan of least <P, C> - reg H(P); reg = 2 sigma^2 tends
               to the Schroedinger bridge of a Brownian motion of variance sigma^2

    Data stay where they are and only noise moves; among data with labels it moves
    within a label. A block is `size` consecutive samples of the global batch, and a
    micro-batch has to hold whole blocks: then no split changes a pair. Sinkhorn draws
    noise with replacement.

    Reference: Tong et al. 2024, algorithm 2, arXiv:2302.00482; Pooladian et al. 2023,
        arXiv:2304.14772.

    Args:
        size: Samples per block; divides the micro-batch.
        method: An exact assignment, or one that entropy softens.
        reg: Weight of the entropy, sinkhorn only.
    """

    alike = True

    def __init__(
        self,
        size: int = 128,
        method: Literal["exact", "sinkhorn"] = "exact",
        reg: float = 0.05,
    ) -> None:
        require(size >= 2, "size", size, ">= 2")
        require(reg > 0, "reg", reg, "> 0")
        self.size, self.method, self.reg = size, method, reg

    def check(self, micro_batch: int) -> None:
        if micro_batch % self.size:
            raise self._broken(micro_batch)

    def _broken(self, count: int) -> ConfigError:
        fits = max(n for n in range(1, self.size + 1) if count % n == 0)
        message = f"coupling.size: {self.size} does not divide micro-batches of {count}"
        return ConfigError(f"{message} samples", f"coupling.size={fits}")

    def __call__(self, x0: Tensor, noise: Tensor, rng: Rng, **cond: Tensor) -> Coupled:
        block = rng.rows // self.size
        held = torch.bincount(block - block.min())  # of every block; 0 between two
        if bool(((held != self.size) & (held > 0)).any()):
            raise self._broken(len(x0))
        group = block
        if "label" in cond:
            label = cond["label"] - cond["label"].min()
            group = block * (label.max() + 1) + label
        u = rng.child("plan").uniform((len(x0),))
        chosen = torch.arange(len(x0), device=x0.device)
        for one in sorted(set(group.tolist())):
            own = (group == one).nonzero().flatten()
            chosen[own] = own[self._plan(x0[own], noise[own], u[own])]
        return x0, noise[chosen], cond

    def _plan(self, x0: Tensor, noise: Tensor, u: Tensor) -> Tensor:
        """Which noise each datum gets, (B,)."""
        ot, count = _ot(), len(x0)
        even = torch.full((count,), 1 / count, dtype=torch.float64).numpy()
        gaps = torch.cdist(x0.double().flatten(1), noise.double().flatten(1))
        cost = gaps.square().cpu().numpy()
        if self.method == "exact":
            plan = torch.from_numpy(ot.emd(even, even, cost))
            return plan.argmax(1).to(x0.device)
        soft = ot.sinkhorn(even, even, cost, self.reg, "sinkhorn_log", stopThr=1e-6)
        below = torch.from_numpy(soft).to(u).cumsum(1)
        place = torch.searchsorted(below / below[:, -1:], u[:, None])
        return place.flatten().clamp(max=count - 1)


def _ot() -> Any:
    try:
        import ot
    except ImportError as error:
        message = "coupling: optimal transport needs the package POT"
        raise EnvironmentFault(message, "pip install 'diffusion-cli[ot]'") from error
    return ot
