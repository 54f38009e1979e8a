"""The output of a network as a belief about tokens."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from diffusion_cli.core import Categorical, Spec
from diffusion_cli.parametrisations import Parametrisation, parametrisations
from diffusion_cli.processes import Process
from diffusion_cli.processes.tokens import Masking, Tokens

CERTAIN = 1e9  # the other tokens have probability 0, multiples stay finite


@parametrisations("logits")
class Logits(Parametrisation):
    """F are logits of the clean tokens: p(x_0i | x_t) = softmax(F_i).

    The network sees the tokens of x_t and the time. Symbols that no data has, such as
    the mask, are left out of the belief.

    Reference: Austin et al. 2021, section 3.3, arXiv:2107.03006.
    """

    needs = Tokens

    def out(self, state: Spec) -> tuple[int, ...]:
        return (*state.shape, state.vocab)

    def inputs(self, x: Tensor, t: Tensor, process: Process) -> tuple[Tensor, Tensor]:
        return x, t

    def posterior(
        self, out: Tensor, x: Tensor, t: Tensor, process: Process
    ) -> Categorical:
        return Categorical(out[..., : cast(Tokens, process).vocab])


@parametrisations("subs")
class Subs(Parametrisation):
    """F are logits of the hidden tokens; visible tokens are what they are.

    p(x_0i = v | x_t) = softmax(F_i)[v] where x_ti = MASK, never MASK itself,
                        [v = x_ti] elsewhere

    The true belief does not depend on t, so the network need not see it. Then a step
    that changed nothing needs no second evaluation (`sampler=cached`).

    Reference: Sahoo et al. 2024, section 3.2.3, arXiv:2406.07524.

    Args:
        time: Whether the network sees the time.
    """

    needs = Masking

    def __init__(self, time: bool = False) -> None:
        self.time, self.timeless = time, not time

    def out(self, state: Spec) -> tuple[int, ...]:
        return (*state.shape, state.vocab)

    def inputs(self, x: Tensor, t: Tensor, process: Process) -> tuple[Tensor, Tensor]:
        return x, t if self.time else torch.zeros_like(t)

    def posterior(
        self, out: Tensor, x: Tensor, t: Tensor, process: Process
    ) -> Categorical:
        vocab = cast(Masking, process).vocab
        visible = (x < vocab)[..., None]
        tokens = torch.arange(vocab, device=x.device)
        # finite, so that a difference of two such logits is a number
        sure = (x[..., None] != tokens).to(out.dtype) * -CERTAIN
        return Categorical(torch.where(visible, sure, out[..., :vocab]))
