"""Guidance: denoisers around a denoiser. Each takes the inner one first."""

from __future__ import annotations

from diffusion_cli.denoiser import Denoiser
from diffusion_cli.registry import Registry

guidances: Registry[Denoiser] = Registry(
    "guidance", Denoiser, __name__, given=("denoiser", "context")
)
