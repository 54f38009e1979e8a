"""The output of a network as a belief about the label."""

from __future__ import annotations

from typing import cast

from torch import Tensor

from diffusion_cli.core import Categorical, Spec
from diffusion_cli.errors import ConfigError
from diffusion_cli.parametrisations import Parametrisation, parametrisations
from diffusion_cli.processes import Process
from diffusion_cli.processes.affine import Affine, root


@parametrisations("classes")
class Classes(Parametrisation):
    """F are logits of the class: p(y | x_t) = softmax(F), whatever the noise.

    The network sees x / sqrt(alpha^2 + sigma^2) and log(sigma / alpha) / 4, so that
    paths with the same noise levels are the same to it.

    Reference: Dhariwal and Nichol 2021, section 4, arXiv:2105.05233.
    """

    needs = Affine
    about = "label"

    def out(self, state: Spec) -> tuple[int, ...]:
        if state.classes < 2:
            message = "parametrisation: `classes` needs data with labels"
            raise ConfigError(message, "a dataset with labels, dataset.labels=true")
        return (state.classes,)

    def inputs(self, x: Tensor, t: Tensor, process: Process) -> tuple[Tensor, Tensor]:
        affine = cast(Affine, process)
        k = affine.at(t, x)
        return x / root(k.alpha**2 + k.sigma**2), affine.log_ratio(t) / 4

    def posterior(
        self, out: Tensor, x: Tensor, t: Tensor, process: Process
    ) -> Categorical:
        return Categorical(out[:, None])  # (B, 1, K): one token, the class
