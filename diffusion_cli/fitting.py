"""What goes with what: refused with the reason, before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusion_cli.core import Spec
from diffusion_cli.couplings import Coupling
from diffusion_cli.errors import ConfigError
from diffusion_cli.objectives import Objective
from diffusion_cli.processes import Flow, Process, processes
from diffusion_cli.processes.affine import Affine, Diffusion
from diffusion_cli.processes.pathless import Pathless
from diffusion_cli.processes.rays import Charged
from diffusion_cli.processes.tokens import Absorbing, Masking, Tokens
from diffusion_cli.settings import micro_batch

Config = Mapping[str, Any]
OFFERS = {
    Process: "any process",
    Flow: "a process with a velocity",
    Affine: "an affine process (alpha x_0 + sigma n)",
    Diffusion: "a process with Gaussian noise",
    Pathless: "a process without a path (process=idempotent)",
    Charged: "a process of charges (process=pfgm or pfgmpp)",
    Tokens: "a process on tokens",
    Masking: "a process that masks tokens",
    Absorbing: "a process that masks every token at a time of its own",
}
FITTING = {  # for data of a kind, where the process wants the other
    "continuous": "process=ddpm or flow, or dataset=text, markov or digit_tokens",
    "tokens": "process=mask, uniform or another of `dcli list process`",
}


def demand(
    where: str, name: str, need: type[Process], process: Process, hint: str = ""
) -> None:
    """Refuse a part that needs more than the process offers."""
    if not isinstance(process, need):
        own, role = processes.name_of(process), where.rpartition(".")[2]
        message = f"{where}: `{name}` needs {OFFERS[need]}; `{own}` is not one"
        raise ConfigError(message, hint or f"dcli list {role}")


def coupled(
    built: Objective, coupling: Coupling, config: Config, process: Process, spec: Spec
) -> None:
    """Refuse a coupling that the objective ignores, or that has not its noise."""
    name, own = config["coupling"]["name"], spec.codec.get("noise")
    if name != "independent" and not hasattr(built, "coupling"):
        raise ConfigError(
            f"coupling: objective `{config['objective']['name']}` takes no `{name}`",
            "coupling=independent",
        )
    if name != "independent" and built.independent:
        message = f"coupling: `{config['objective']['name']}` knows independent noise"
        raise ConfigError(message, "coupling=independent")
    if coupling.alike:
        demand("coupling", name, Affine, process)
    if "trainer" in config:  # parts may be built without a run
        coupling.check(micro_batch(config["trainer"]))
    if coupling.paired != (own is not None):
        message = "coupling: pairs and dataset=pairs need each other"
        raise ConfigError(message, "coupling=pairs dataset=pairs dataset.path=SAMPLES")
    law = {key: v for key, v in config["process"].items() if key != "schedule"}
    if coupling.paired and (law != own or law.get("reach") is not None):
        message = f"process: the pairs were drawn with the noise of {own}, not {law}"
        raise ConfigError(message, "the process of the run that drew them")
