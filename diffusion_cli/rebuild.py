"""From a checkpoint back to a model that samples: the parts it was trained with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffusion_cli import assemble
from diffusion_cli.artifact import broken
from diffusion_cli.checkpoint import Checkpoint, load
from diffusion_cli.core import Spec
from diffusion_cli.datasets import Dataset, datasets
from diffusion_cli.denoiser import Context, Denoiser, Model
from diffusion_cli.derived import Derived
from diffusion_cli.errors import CheckpointError, ConfigError
from diffusion_cli.registry import ROLES, Node, near
from diffusion_cli.samplers import Sampler
from diffusion_cli.trainer import autocast, memory, precision

TRAINED = ("process", "parametrisation", "network")  # what the weights depend on


class Rebuilt(NamedTuple):
    """A trained model with what walks it."""

    model: Model
    sampler: Sampler
    denoiser: Denoiser  # the model inside its guidance
    chosen: dict[str, Any]  # the nodes of sampler and guidance, complete


def rebuild(
    found: Checkpoint,
    *,
    sampler: Node | None = None,
    guidance: Node | list[Node] | None = None,
    steps: int | None = None,
    nfe: int | None = None,
    weights: str = "ema",
    device: torch.device | None = None,
    network_precision: str = "auto",
) -> Rebuilt:
    """The model of a checkpoint, its sampler and its guidance.

    Args:
        found: The checkpoint; its config is data: names looked up, nothing imported.
        sampler: A node that replaces the run's own, or keys laid over it.
        guidance: The same for guidance; an empty list turns it off.
        steps: Steps of the sampler.
        nfe: Denoiser calls instead of steps.
        weights: `ema`, `ema-<half-life>` or `raw`.
        device: Where to compute; the CPU if not given.
        network_precision: Precision of the network alone.
    """
    device = device or torch.device("cpu")
    model = trained(found, weights, device, network_precision)
    context = Place(kind(found), found.spec, device, found, weights)
    if model.parametrisation.about != "x0":
        message = f"ckpt: {found.home} is a classifier; it has nothing to draw"
        hint = f"dcli sample ckpt=... guidance=classifier guidance.run={found.home}"
        raise ConfigError(message, hint)
    walk = laid_over("sampler", found, sampler)
    guide = laid_over("guidance", found, guidance)
    built = assemble.sampler(walk, model.process, steps, nfe, context)
    if "steps" in walk:
        walk = {**walk, "steps": built.steps}
    denoiser = assemble.guided(model, guide, found.config, context).eval()
    assemble.harmonious(built, denoiser, walk["name"])
    return Rebuilt(model, built, denoiser, {"sampler": walk, "guidance": guide})


def trained(
    found: Checkpoint,
    weights: str = "ema",
    device: torch.device | None = None,
    network_precision: str = "auto",
) -> Model:
    """The model of a checkpoint: frozen, in evaluation mode, on its device."""
    device = device or torch.device("cpu")
    config = dict(found.config)
    for role in TRAINED:
        config[role] = _stored(found, role, config.get(role))
    model = _model(found, config)
    found.load_model(model, weights)
    model.to(device).eval().requires_grad_(False)
    model.around = autocast(device, precision(device, network_precision))
    return model


def kind(found: Checkpoint) -> type[Dataset]:
    """The class of the data the model was trained on; the data itself is not opened."""
    node = found.config.get("dataset")
    name = node.get("name") if isinstance(node, Mapping) else None
    if name not in datasets.names():
        message = f"{found.folder}: uses dataset `{name}`, which is not installed"
        hint = f"plugins=[...]{near(str(name), datasets.names())}"
        raise CheckpointError(message, hint, "CKPT-PLUGIN")
    return datasets[str(name)]


class Place(Context):
    """Where parts are built: beside which data, for which checkpoint.

    Args:
        kind: Class of the data set, which reads samples from files.
        spec: What a sample looks like.
        device: Where models and samples are to be.
        found: The checkpoint that is sampled; None while a run is trained.
        weights: Which of its weights.
    """

    def __init__(
        self,
        kind: type[Dataset],
        spec: Spec,
        device: torch.device,
        found: Checkpoint | None = None,
        weights: str = "ema",
    ) -> None:
        self.kind, self.spec, self.device = kind, spec, device
        self.found, self.weights = found, weights

    def model(self, run: str) -> Model:
        return trained(load(run), device=self.device)

    def samples(self, path: str) -> Tensor:
        return self.kind.load(Path(path).expanduser(), self.spec).to(self.device)

    def prompt(self, text: str, mask: str) -> Tensor:
        return self.kind.prompt(text, self.spec, mask).to(self.device)

    def fitted(self, name: str) -> Mapping[str, Tensor]:
        found = self._sampled(f"what `dcli fit` finds under `{name}`")
        values = Derived(found, self.weights).read(name)
        if values is None:
            message = f"{found.home}: nothing was fitted yet for `{name}`"
            raise ConfigError(message, f"dcli fit ckpt={found.home} variance={name}")
        return {key: value.to(self.device) for key, value in values.items()}

    def recorded(self, name: str) -> Tensor:
        found = self._sampled(f"the objective's `{name}`")
        values = found.tensors("objective")
        if name not in values:
            message = f"{found.home}: training recorded no `{name}`"
            raise ConfigError(message, "train it with objective.name=denoise")
        return values[name].to(self.device)

    def _sampled(self, what: str) -> Checkpoint:
        if self.found is None:
            message = f"{what} belongs to a trained run"
            raise ConfigError(message, "leave it out of `dcli train`; dcli sample ...")
        return self.found


def labels(label: Any, spec: Spec, config: Mapping[str, Any]) -> list[int] | None:
    """Class indices from indices or names, -1 for no class; None to draw them."""
    if label is None:
        return None
    wanted = label if isinstance(label, list) else [label]
    if not wanted:
        raise ConfigError("label: the list is empty", "leave label out")
    if not spec.classes:
        message = "label: the model is unconditional, it was trained without labels"
        raise ConfigError(message, "leave label out")
    knows_none = bool(config["objective"].get("drop"))
    names = {name: i for i, name in enumerate(spec.names)}
    found = []
    for each in wanted:
        index = names.get(str(each), each)
        if index == -1 and not knows_none:
            message = "label: -1 needs a model trained with objective.drop > 0"
            raise ConfigError(message, f"label in 0 .. {spec.classes - 1}")
        if not isinstance(index, int) or not -1 <= index < spec.classes:
            known = ", ".join(spec.names[:10]) or f"0 .. {spec.classes - 1}"
            more = ", ..." if len(spec.names) > 10 else ""
            message = f"label: there is no class {each!r} among {known}{more}"
            raise ConfigError(message, f"label in 0 .. {spec.classes - 1}")
        found.append(index)
    return found


def _model(found: Checkpoint, config: Mapping[str, Any]) -> Model:
    """The model as the config says; whatever else its author wrote, it is refused."""
    seed, objective = config.get("seed"), config.get("objective")
    if not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise broken(found.folder, f"manifest.json: seed is {seed!r}")
    if not isinstance(objective, Mapping):
        raise broken(found.folder, f"manifest.json: objective is {objective!r}")
    try:
        with memory("sample: the model", "device=<another>"):
            return assemble.model(config, found.spec)
    except (ConfigError, ArithmeticError, RuntimeError, TypeError, ValueError) as error:
        what = f"the model cannot be built: {str(error).strip().splitlines()[0]}"
        raise broken(found.folder, what) from error


def _stored(found: Checkpoint, role: str, node: Any) -> dict[str, Any]:
    """A node of the checkpoint's config, checked like one that a user typed."""
    registry = ROLES[role]
    name = node.get("name") if isinstance(node, Mapping) else None
    if isinstance(name, str) and name not in registry.names():
        trained = found.config.get("plugins") or []
        hint = "install the package that it comes from"
        if trained:
            listed = ",".join(str(plugin) for plugin in trained)
            hint = (
                f"it was trained with plugins=[{listed}]; "
                "pass that again if you trust the file"
            )
        message = f"{found.folder}: uses {role} `{name}`, which is not installed"
        raise CheckpointError(message, hint, "CKPT-PLUGIN")
    values, errors = registry.check(node, role)
    if errors:
        text = "; ".join(error.message for error in errors)
        raise CheckpointError(f"{found.folder}: {text}", "", "CKPT-CORRUPT")
    return values


def laid_over(role: str, found: Checkpoint, chosen: Any) -> Any:
    """The run's own node, the chosen one, or the run's with the chosen keys over it."""
    if isinstance(chosen, list) or (chosen and "name" in chosen):
        return chosen
    own = found.config.get(role)
    if isinstance(own, list):
        own = [_stored(found, role, node) for node in own]
    elif own or role != "guidance":
        own = _stored(found, role, own)
    if not chosen:
        return own or None
    if isinstance(own, list):
        return _each_laid_over(role, own, chosen)
    if not isinstance(own, Mapping):
        hint = f"dcli list {role}"
        raise ConfigError(f"{role}: name one first; the run has no single {role}", hint)
    values, errors = ROLES[role].check(_merged(own, chosen), role)
    if errors:
        raise errors[0] if len(errors) == 1 else ConfigError("", more=errors)
    return values


def _each_laid_over(role: str, own: list[Any], chosen: Node) -> list[Any]:
    """A stack of nodes with keys laid over some of them: `{cfg: {scale: 3}}`."""
    names = [node["name"] for node in own]
    if strange := [key for key in chosen if key not in names]:
        message = f"{role}.{strange[0]}: the run has {role} {', '.join(names)}"
        raise ConfigError(message, f"{role}=<name> to choose another")
    merged = [_merged(node, chosen.get(node["name"], {})) for node in own]
    checked = [ROLES[role].check(node, role) for node in merged]
    if errors := [error for _, found in checked for error in found]:
        raise errors[0] if len(errors) == 1 else ConfigError("", more=errors)
    return [values for values, _ in checked]


def _merged(under: Node, over: Node) -> dict[str, Any]:
    """Nested keys of `over` replace those of `under`; a new name takes nothing over."""
    if over.get("name", under.get("name")) != under.get("name"):
        return dict(over)
    merged = dict(under)
    for key, value in over.items():
        below = under.get(key)
        both = isinstance(value, Mapping) and isinstance(below, Mapping)
        merged[key] = _merged(below, value) if both else value  # type: ignore[arg-type]
    return merged
