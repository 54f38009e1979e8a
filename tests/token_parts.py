"""Choices of parts for tokens."""

from __future__ import annotations

from typing import Any

from choices import formulation
from tiny import tiny
from token_oracles import PROCESSES

from diffusion_cli import assemble

EVERY = sorted(PROCESSES)
MARKOV = {"name": "markov", "letters": 4, "length": 6, "size": 100}
NETWORK = {"name": "token_transformer", "depth": 1, "width": 8, "heads": 2}
FEW = {"d3pm": {"levels": 20, "beta_max": 4.0}}


def config(process: str, **changes: Any) -> dict[str, Any]:
    """A tiny run of a token process with the parts that its yaml selects."""
    own = formulation(process)
    own["process"] = {**own["process"], **FEW.get(process, {})}
    steps = {"steps": 6} if "steps" in own["sampler"] else {}
    own["sampler"] = {**own["sampler"], **steps}
    own |= {"dataset": MARKOV, "network": {**NETWORK, "dropout": 0.2}}
    return tiny(**(own | changes))


def parts(process: str, **changes: Any) -> assemble.Parts:
    values = config(process, **changes)
    data = assemble.dataset(values)
    return assemble.parts(values, data.spec)
