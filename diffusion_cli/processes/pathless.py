"""Processes without a path. Registers nothing."""

from __future__ import annotations

from diffusion_cli.processes import Process


class Pathless(Process):
    """Data at t = 0, noise at every other time, and nothing in between.

    Reference: Shocher et al. 2024, section 2, arXiv:2311.01462.
    """
