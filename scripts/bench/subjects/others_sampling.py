"""Samples of diffusers, with a network that costs what networks cost."""

from __future__ import annotations

from collections.abc import Callable

import torch

from subjects.others_training import diffusers_network

Once = Callable[[], None]


def pipeline(steps: int, batch: int, bf16: bool = False, small: bool = False) -> Once:
    """Its DDIM pipeline, as its documentation writes it, or under autocast."""
    from diffusers import DDIMPipeline, DDIMScheduler

    drawn = DDIMPipeline(diffusers_network(small).eval(), DDIMScheduler())
    drawn.set_progress_bar_config(disable=True)

    def once() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            drawn(batch_size=batch, num_inference_steps=steps, output_type="pt")

    return once
