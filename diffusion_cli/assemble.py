"""Config and data become parts that fit: the one place where they are checked together.

`train`, `check` and `sample` build through the same functions from the same plain dict,
so a checkpoint is rebuilt exactly as it was trained.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from diffusion_cli.core import Spec
from diffusion_cli.couplings import couplings
from diffusion_cli.datasets import Dataset, datasets
from diffusion_cli.denoiser import Context, Denoiser, Model
from diffusion_cli.errors import ConfigError
from diffusion_cli.fitting import FITTING, coupled, demand
from diffusion_cli.guidance import guidances
from diffusion_cli.networks import networks
from diffusion_cli.objectives import Objective, objectives
from diffusion_cli.parametrisations import parametrisations
from diffusion_cli.processes import Process, processes
from diffusion_cli.registry import check_call
from diffusion_cli.samplers import Sampler, samplers

T = TypeVar("T")
Config = Mapping[str, Any]


@dataclass(frozen=True)
class Parts:
    """All that a run is made of."""

    model: Model
    objective: Objective
    sampler: Sampler
    denoiser: Denoiser  # the model inside its guidance

    @property
    def draws(self) -> bool:
        """Whether the model knows what to draw; a classifier does not."""
        return self.model.parametrisation.about == "x0"


def dataset(config: Config) -> Dataset:
    """The data set of a run, not yet prepared."""
    return datasets.build(config["dataset"])


def spec_of(config: Config) -> Spec:
    """What the data looks like; reads data only where nothing else can tell."""
    data = dataset(config)
    if not hasattr(data, "spec"):
        data.prepare()
    return data.spec


def parts(
    config: Config, spec: Spec, device: str = "cpu", context: Context | None = None
) -> Parts:
    """Everything, built and checked part against part; all findings at once."""
    found: list[ConfigError] = []

    def attempt(build: Callable[[], T]) -> T | None:
        try:
            return build()
        except ConfigError as error:
            if error.render() not in [known.render() for known in found]:
                found.append(error)
            return None

    built = attempt(lambda: model(config, spec, device, context))
    if built is None:
        process = attempt(lambda: _process(config, spec, context))
    else:
        process = built.process
    loss = attempt(lambda: objective(config, process, spec)) if process else None
    node, guides = config["sampler"], config.get("guidance")
    walk = attempt(lambda: sampler(node, process, context=context)) if process else None
    guide = attempt(lambda: guided(built, guides, config, context)) if built else None
    if loss and built:
        attempt(lambda: _agree(loss, built, config))
    if walk and guide:
        attempt(lambda: harmonious(walk, guide, node["name"]))
    if found or not (built and loss and walk and guide):
        raise found[0] if len(found) == 1 else ConfigError("", more=found)
    return Parts(built, loss, walk, guide)


def _agree(loss: Objective, built: Model, config: Config) -> None:
    """Refuse an objective that teaches something else than the model tells."""
    names = config["objective"]["name"], config["parametrisation"]["name"]
    reading = built.parametrisation
    if loss.about != reading.about:
        hint = "objective=classify parametrisation=classes for a classifier"
        raise ConfigError(
            f"objective: `{names[0]}` teaches the {loss.about}, parametrisation "
            f"`{names[1]}` tells the {reading.about}",
            hint,
        )
    if loss.plain and config.get("trainer", {}).get("compile"):
        raise ConfigError(
            f"trainer.compile: objective `{names[0]}` takes derivatives that no "
            "compiled network has",
            "trainer.compile=false",
        )
    if reason := loss.fits(built):
        raise ConfigError(
            f"objective: `{names[0]}` {reason}; parametrisation is `{names[1]}`",
            "dcli list objective; dcli list parametrisation",
        )


def harmonious(walk: Sampler, denoiser: Denoiser, name: str) -> None:
    """Refuse a sampler and a guidance, or a model, that cannot work together."""
    if walk.timeless and not denoiser.timeless:
        raise ConfigError(
            f"sampler: `{name}` needs a belief that does not depend on the time",
            "parametrisation=subs without guidance of its own, or sampler=ancestral",
        )
    if denoiser.tilts and not walk.draws:
        raise ConfigError(
            f"guidance: form=mean moves the mean of a draw; sampler `{name}` draws "
            "nothing of its own",
            "guidance.form=score, or sampler=ancestral",
        )
    if denoiser.varies and not walk.own:
        raise ConfigError(
            f"guidance: it sets the variance of a belief; sampler `{name}` uses none",
            "sampler=ancestral",
        )


def model(
    config: Config, spec: Spec, device: str = "cpu", context: Context | None = None
) -> Model:
    """Process, network and parametrisation; weights follow from the seed alone."""
    process = _process(config, spec, context)
    reading = parametrisations.build(config["parametrisation"])
    demand("parametrisation", config["parametrisation"]["name"], reading.needs, process)
    if reason := reading.fits(process):
        name = config["parametrisation"]["name"]
        raise ConfigError(
            f"parametrisation: `{name}` {reason}",
            "try parametrisation=velocity, v, x0 or edm",
        )
    state = process.state(spec)
    # initialisers draw from the default generator: seed it, and give it back untouched
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(config["seed"])
        network = networks.build(config["network"], state=state, out=reading.out(state))
    return Model(process, network, reading, spec)


def _process(config: Config, spec: Spec, context: Context | None) -> Process:
    """The process, if it works on data of this kind."""
    kind = processes[config["process"]["name"]].kind
    if spec.kind != kind:
        raise ConfigError(
            f"process: `{config['process']['name']}` works on {kind} data; "
            f"`{config['dataset']['name']}` is {spec.kind}",
            FITTING[spec.kind],
        )
    read = context.samples if context else None
    return processes.build(config["process"], data=spec, read=read)


def objective(config: Config, process: Process, spec: Spec) -> Objective:
    """The objective with its coupling, checked against the process and the labels."""
    node = config["objective"]
    coupling = couplings.build(config["coupling"])
    built = objectives.build(node, coupling=coupling)
    demand("objective", node["name"], built.needs, process)
    coupled(built, coupling, config, process, spec)
    drop = node.get("drop")
    if drop and not spec.classes:
        message = f"objective.drop: must be 0 for data without labels, got {drop}"
        raise ConfigError(message, "objective.drop=0")
    return built


def sampler(
    node: Config,
    process: Process,
    steps: int | None = None,
    nfe: int | None = None,
    context: Context | None = None,
) -> Sampler:
    """The sampler, with `steps` or as many steps as `nfe` denoiser calls allow."""
    name = node["name"]
    if (steps or nfe) and "steps" not in node:
        raise ConfigError(f"steps: sampler `{name}` chooses its own", "leave it out")
    if steps:
        node = {**node, "steps": steps}
    built = samplers.build(node, context=context)
    if nfe:
        fitting = [n for n in range(1, nfe + 1) if built.calls(n) <= nfe]
        if not fitting:
            least = built.calls(1)
            raise ConfigError(f"nfe: `{name}` needs at least {least} calls, got {nfe}")
        node = {**node, "steps": fitting[-1]}
        built = samplers.build(node, context=context)
    demand("sampler", name, built.needs, process, "try sampler=ancestral")
    how = getattr(built, "how", {})
    step = type(process).reverse
    own = ("self", "q", "x", "t", "s", "rng")
    _, errors = check_call(step, how, "sampler", processes.name_of(process), own)
    if errors:
        raise ConfigError("", more=errors)
    try:
        process.check(**how)
    except ValueError as error:
        raise ConfigError(f"sampler.{error}") from error
    if grid := getattr(built, "grid", None):
        demand("sampler.grid", node["grid"]["name"], grid.needs, process)
        try:
            grid(process, built.steps)
        except ValueError as error:
            most = process.levels
            hint = f"sampler.steps={most}" if most and built.steps > most else ""
            raise ConfigError(f"sampler.{error}", hint) from error
    built.check(process)
    return built


def guided(
    model: Model,
    nodes: Config | Sequence[Config] | None,
    config: Config,
    context: Context | None = None,
) -> Denoiser:
    """The model inside its guidance, the first node innermost; `config` trained it."""
    denoiser: Denoiser = model
    for node in [nodes] if isinstance(nodes, Mapping) else nodes or []:
        cls = guidances[node["name"]]
        demand("guidance", node["name"], cls.needs, denoiser.process)
        if cls.labelled and not model.spec.classes:
            raise ConfigError(
                f"guidance: `{node['name']}` needs labels; the model is unconditional",
                "guidance=none",
            )
        if cls.labelled and not config["objective"].get("drop"):
            raise ConfigError(
                f"guidance: `{node['name']}` needs training with objective.drop > 0",
                "dcli train ... objective.drop=0.1",
            )
        inner = denoiser
        denoiser = guidances.build(node, denoiser=inner, context=context)
        demand("guidance", node["name"], denoiser.needs, denoiser.process)
        denoiser.tilts = denoiser.tilts or inner.tilts
        denoiser.varies = denoiser.varies or inner.varies
    return denoiser
