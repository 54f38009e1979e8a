"""Fill in what a prompt leaves open."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from diffusion_cli.core import Categorical, Posterior
from diffusion_cli.denoiser import Context, Denoiser
from diffusion_cli.guidance import guidances
from diffusion_cli.processes.tokens import Tokens

CERTAIN = 1e9  # the other tokens have probability 0, multiples stay finite


@guidances("infill")
class Infill(Denoiser):
    """Tokens of a prompt stay fixed; the rest is drawn given them.

    p(x_0i = v | x_t, prompt) = [v = prompt_i] where the prompt says something,
                                p(x_0i = v | x_t with the prompt laid over) elsewhere

    Exact for masked tokens; where tokens are replaced by others, the model meets states
    with fewer errors than it expects.

    Reference: Sahoo et al. 2024, section 3.2.3 (carry-over), arXiv:2406.07524.

    Args:
        prompt: A text, in which `mask` stands for an open place. What follows a shorter
            one is open too.
        mask: The character for an open place.
    """

    needs = Tokens

    def __init__(
        self, denoiser: Denoiser, context: Context, prompt: str, mask: str = "_"
    ) -> None:
        super().__init__()
        self.inner, self.process = denoiser, denoiser.process
        self.timeless = denoiser.timeless
        self.prompt: Tensor  # (L,), -1 where it is open
        self.register_buffer("prompt", context.prompt(prompt, mask), persistent=False)

    def forward(self, x: Tensor, t: Tensor, **cond: Tensor) -> Posterior:
        fixed = (self.prompt >= 0).expand_as(x)
        x = torch.where(fixed, self.prompt, x)
        q = cast(Categorical, self.inner(x, t, **cond))
        tokens = torch.arange(q.logits.shape[-1], device=x.device)
        sure = (self.prompt[:, None] != tokens).to(q.logits.dtype) * -CERTAIN
        logits = torch.where(fixed[..., None], sure, q.logits)
        return Categorical(logits, given=self.prompt)
