"""Readings and beliefs with a second head."""

from diffusion_cli.couplings import couplings
from diffusion_cli.objectives import objectives
from diffusion_cli.parametrisations import parametrisations


def reading(name, mean="eps", **own):
    return parametrisations.build({"name": name, "mean": {"name": mean}, **own})


def objective(name, **own):
    own = {"time": {"name": "uniform"}} | own
    independent = couplings.build({"name": "independent"})
    return objectives.build({"name": name, **own}, coupling=independent)
