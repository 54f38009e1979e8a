"""From a checkpoint back to a model that samples: the parts it was trained with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from diffusion_cli import assemble
from diffusion_cli.checkpoint import Checkpoint
from diffusion_cli.core import Spec
from diffusion_cli.denoiser import Denoiser, Model
from diffusion_cli.errors import ConfigError
from diffusion_cli.graphs import recorder, replay
from diffusion_cli.place import Place, kind, stored, trained
from diffusion_cli.registry import ROLES, Node
from diffusion_cli.samplers import Sampler
from diffusion_cli.tracking import say


class Rebuilt(NamedTuple):
    """A trained model with what walks it."""

    model: Model
    sampler: Sampler
    denoiser: Denoiser  # the model inside its guidance
    chosen: dict[str, Any]  # the nodes of sampler and guidance, complete
    place: Place  # what they asked for


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
    start: float | None = None,
    replayed: bool = False,
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
        start: Time at which sampling starts instead of t = 1.
        replayed: Whether CUDA graphs replay the networks, on a device that has them.
    """
    device = device or torch.device("cpu")
    model = trained(found, weights, device, network_precision)
    context = Place(kind(found), found.spec, device, found, weights)
    if model.parametrisation.about != "x0":
        message = f"ckpt: {found.home} is a classifier; it has nothing to draw"
        hint = f"dcli sample ckpt=... guidance=classifier guidance.run={found.home}"
        raise ConfigError(message, hint)
    walk = laid_over("sampler", found, sampler)
    if start is not None:
        start = _begin(model, start)
        steps = _fewer(model, walk, start, steps, nfe)
    guide = laid_over("guidance", found, guidance)
    context.walk = {"sampler": walk, "guidance": guide}
    built = assemble.sampler(walk, model.process, steps, nfe, context)
    if start is not None and (grid := getattr(built, "grid", None)):
        first = float(grid(model.process, built.steps)[0])
        if abs(first - start) > 1e-6:
            message = f"restore: this grid starts at t = {first:.3g}, not {start:g}"
            raise ConfigError(message, "sampler.grid.name=uniform")
    if "steps" in walk:
        walk = {**walk, "steps": built.steps}
    denoiser = assemble.guided(model, guide, found.config, context).eval()
    assemble.harmonious(built, denoiser, walk["name"])
    if replayed and (records := recorder(device)):
        replay([m.network for m in (model, *context.models)], records)
    chosen = {"sampler": walk, "guidance": guide}
    return Rebuilt(model, built, denoiser, chosen, context)


def _begin(model: Model, start: float) -> float:
    """Let every grid start at `start`, or at the nearest time that there is."""
    process, (low, high) = model.process, model.process.span
    if start < low:
        message = f"severity: {start:g} is less than this process ever spoils data"
        raise ConfigError(message, f"severity={low:g} or more")
    if known := process.levels:
        nearest = max(1, round(start * known)) / known
        if abs(nearest - start) > 1e-9:
            say(f"severity={start:g}: this process knows {nearest:g}")
        start = nearest
    process.span = (low, min(start, high))
    return process.span[1]


def _fewer(
    model: Model, walk: Node, start: float, steps: int | None, nfe: int | None
) -> int | None:
    """The sampler's own steps, but no more than there are times below `start`."""
    known = model.process.levels
    if known and not (steps or nfe) and "steps" in walk:
        return min(int(walk["steps"]), round(start * known))
    return steps


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


def laid_over(role: str, found: Checkpoint, chosen: Any) -> Any:
    """The run's own node, the chosen one, or the run's with the chosen keys over it."""
    if isinstance(chosen, list) or (chosen and "name" in chosen):
        return chosen
    own = found.config.get(role)
    if isinstance(own, list) and role == "guidance":
        own = [stored(found, role, node) for node in own]
    elif own or role != "guidance":
        own = stored(found, role, own)
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
