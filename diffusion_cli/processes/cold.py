"""Cold diffusion: the process of any degradation, without noise if need be."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from torch import Tensor

from diffusion_cli.core import Posterior
from diffusion_cli.processes import Process, processes
from diffusion_cli.processes.arcs import circle
from diffusion_cli.processes.degradation import Operator
from diffusion_cli.rng import Rng
from diffusion_cli.settings import require

Kernel = Literal["improved", "restart", "mix"]
FRESH = 0.5  # the part of new noise in a step that mixes


@processes("cold")
class Cold(Process):
    """x_t = D(x_0, t; n) for any operator D; what is random in it stays for the way.

    improved:  x_s = x_t - D(m, t; n*) + D(m, s; n*)
    restart:   x_s = D(m, s; n')
    mix:       x_s = D(m, s; sqrt(1 - r^2) n* + r n')

    m is the belief's mean and n' another draw. n* solves D(m, t; n*) = x_t if x_t tells
    it (fade), and is else what the sample began with (the centre of a mask). The
    improved step forgives any m as far as D(m, t) - D(m, s) does not depend on it, and
    is DDIM where D fades to noise; `mix` leads from there to `restart`, and asks for
    normal noise.

    The prior is the law of D(x_0, 1), fitted to the data, with a little noise: a mean
    colour cannot tell one image from another.

    Reference: Bansal et al. 2022, algorithms 1 and 2 and section 5.2,
        arXiv:2208.09392; Su 2022, https://kexue.fm/archives/9262.

    Args:
        operator: The degradation D.
        levels: Number of times that are trained and sampled, 1/levels .. 1.
        jitter: Standard deviation of the noise that is added to the prior.
    """

    def __init__(
        self, operator: Operator, levels: int = 50, jitter: float = 0.002
    ) -> None:
        super().__init__()
        require(levels >= 1, "levels", levels, ">= 1")
        require(jitter >= 0, "jitter", jitter, ">= 0")
        self.operator, self.levels, self.jitter = operator, levels, jitter
        self.span, self.told = (1 / levels, 1.0), operator.told

    def fit(self, batches: Iterable[Tensor]) -> None:
        self.operator.fit(batches)

    def ready(self) -> None:
        self.operator.ready()

    def noise(self, x0: Tensor, rng: Rng) -> Tensor:
        return self.operator.noise(x0, rng)

    def corrupt(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        return self.operator(x0, t, noise)  # type: ignore[no-any-return]

    def prior(self, shape: Sequence[int], rng: Rng) -> Tensor:
        end = self.operator.end(shape, rng)
        return end + self.jitter * rng.child("jitter").normal(end.shape, end.dtype)

    def between(self, a: Tensor, b: Tensor, share: Tensor) -> Tensor:
        mean = self.operator.around
        if mean is None:
            return super().between(a, b, share)
        moved = circle(a.double() - mean, b.double() - mean, share) + mean
        return moved.to(a.dtype)

    def check(
        self, kernel: Kernel = "improved", fresh: float | None = None, **how: Any
    ) -> None:
        takes = fresh is None or kernel == "mix"
        require(takes, "fresh", fresh, "given with kernel=mix alone")
        require(fresh is None or 0 <= fresh <= 1, "fresh", fresh, "in [0, 1]")
        mixes = kernel != "mix" or self.operator.gaussian
        allowed = "improved or restart, where no normal noise can be mixed"
        require(mixes, "kernel", kernel, allowed)

    def reverse(  # type: ignore[override]  # keywords are checked by `assemble`
        self,
        q: Posterior,
        x: Tensor,
        t: Tensor,
        s: Tensor,
        rng: Rng,
        kernel: Kernel = "improved",
        fresh: float | None = None,
    ) -> Tensor:
        operator, mean = self.operator, q.mean
        if kernel == "restart":
            again = operator.noise(x, rng.child("restart"))
            return operator(mean, s, again)  # type: ignore[no-any-return]
        # the prior had this stream at step 0: a trajectory keeps its randomness
        noise = operator.invert(mean, x, t, operator.noise(x, rng.at(0)))
        if kernel == "mix":
            other = operator.noise(x, rng.child("mix"))
            r = FRESH if fresh is None else fresh
            noise = (1 - r**2) ** 0.5 * noise + r * other
            return operator(mean, s, noise)  # type: ignore[no-any-return]
        moved: Tensor = operator(mean, s, noise) - operator(mean, t, noise)
        return x + moved
