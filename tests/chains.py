"""Linear chains: the exact variance that a sampler gives to normal data."""

from itertools import islice

import torch

from diffusion_cli.rng import Rng
from diffusion_cli.samplers import samplers


class Pulses(Rng):
    """Noise 1 for a row of its own at every draw, and 0 for all others.

    Row 0 sees no noise; what the other rows become are the responses to each draw.
    """

    def __init__(self, seen=None, name=(), step=0):
        super().__init__(0, torch.arange(1))
        self.seen = {} if seen is None else seen
        self.name, self.now = name, step

    def child(self, name):
        return Pulses(self.seen, (*self.name, name), self.now)

    def at(self, step):
        return Pulses(self.seen, self.name, step)

    def normal(self, shape, dtype=torch.float32):
        row = self.seen.setdefault((self.name, self.now), len(self.seen)) + 1
        pulse = torch.zeros(shape, dtype=dtype)
        pulse[row] = 1
        return pulse


def variances(sampler, data, draws):
    """The variance after the steps that make so many draws, from the exact one."""
    start = sampler.grid(data.process, sampler.steps)[0]
    x = torch.zeros(draws + 1, 1, dtype=torch.float64)
    x[0] = data.variance(start).sqrt()
    path = islice(sampler.trajectory(data, x, Pulses()), draws)
    return [float(state.square().sum()) for state in path]


def build(name, steps, grid, **own):
    node = {"name": grid} if isinstance(grid, str) else grid
    return samplers.build({"name": name, "steps": steps, "grid": node, **own})
