"""Samplers on normal data, where every step is known."""

from oracles import (
    rows,
)

from diffusion_cli.samplers import samplers

UNIFORM = {"name": "uniform"}
VARIANTS = [
    {"name": "ancestral", "eta": 0.0},
    {"name": "euler"},
    {"name": "heun"},
    {"name": "dpmpp", "order": 1},
    {"name": "dpmpp", "order": 2},
    {"name": "dpmpp", "order": 3},
    {"name": "eab", "order": 1},
    {"name": "eab", "order": 2},
    {"name": "eab", "order": 3},
    {"name": "eab", "order": 4},
    {"name": "rk4"},
    {"name": "dpmpp", "order": 2, "correct": True},
    {"name": "dpmpp", "order": 3, "correct": True},
    {"name": "eab", "order": 1, "correct": True},
    {"name": "eab", "order": 3, "correct": True},
    {"name": "sde_dpmpp", "order": 3, "eta": 0.0},
]


def build(name, steps, grid=UNIFORM, **own):
    return samplers.build({"name": name, "steps": steps, "grid": grid, **own})


def last(sampler, denoiser, x, rng=None):
    *_, x = sampler.trajectory(denoiser, x, rng or rows(len(x)))
    return x
