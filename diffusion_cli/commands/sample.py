"""`dcli sample`: draw from a checkpoint; nothing else is needed."""

from __future__ import annotations

import os
from typing import Any

import torch

from diffusion_cli import checkpoint, distributed, failpoints
from diffusion_cli import device as devices
from diffusion_cli.drawing import Drawing, Given, Way
from diffusion_cli.errors import ConfigError, DataError
from diffusion_cli.gallery import Gallery
from diffusion_cli.guidance import guidances
from diffusion_cli.paths import typed
from diffusion_cli.place import kind
from diffusion_cli.processes import Flow
from diffusion_cli.rebuild import Rebuilt, laid_over, rebuild
from diffusion_cli.stop import Stop
from diffusion_cli.tracking import say

Config = dict[str, Any]
BATCH = 64  # samples at once, unless a command says so or needs fewer
LOST = 0.1  # error beside what was given, both root mean squares, that is told
GIVEN = ("encode", "restore", "severity", "degraded", "interpolate", "prompt")
TOLD = ("seed", "label", "batch", "dtype", *GIVEN)


def run(values: Config, overrides: list[str]) -> float | None:
    """Draw samples; the network calls that each of them takes."""
    failpoints.arm(os.environ.get("DCLI_FAULT"))
    with Stop() as stop, distributed.join(values["devices"]) as world:
        found = checkpoint.load(values["ckpt"])
        device = devices.choose(values["device"], world.local)
        built = rebuild(
            found,
            sampler=values["sampler"],
            guidance=_guidance(found, values),
            steps=values["steps"],
            nfe=values["nfe"],
            weights=values["weights"],
            device=device,
            network_precision=values["precision"],
            replayed=values["graphs"],
            start=values["severity"] if values["restore"] else None,
        )
        devices.tune(device, deterministic=False)
        given = _given(found, built, values)
        way = _way(built, given, values)
        if given is not None and way is None:
            values = {**values, "n": len(given.x0)}
            if any(word.lstrip("+").startswith("n=") for word in overrides):
                say(f"n: every given sample is drawn, {values['n']}")
        batch = values["batch"] or BATCH
        if given is not None or way is not None or not values["batch"]:
            batch = min(values["n"], batch)
        values = {**values, "batch": batch}
        out = values["out"]
        drawing = Drawing(found, built, values, device, stop, given, way, out, world)
        drawing.draw(values["n"], values["trajectory"])
        world.once(lambda: _write(drawing, values))
        return drawing.calls()


def _guidance(found: checkpoint.Checkpoint, values: Config) -> Any:
    """What was chosen, and around it the tokens that `prompt=` fixes."""
    if values["prompt"] is None:
        return values["guidance"]
    if found.spec.kind != "tokens":
        message = f"prompt: {found.folder} draws no text, nor other tokens"
        raise ConfigError(message, "a run of dataset=text")
    own = laid_over("guidance", found, values["guidance"]) or []
    stack = own if isinstance(own, list) else [own]
    infill = {"name": "infill", "prompt": values["prompt"]}
    node, _ = guidances.check(infill, "prompt")
    return [*stack, node]


def _given(
    found: checkpoint.Checkpoint, built: Rebuilt, values: Config
) -> Given | None:
    """The samples of `encode=` or `restore=`, if any."""
    key = "encode" if values["encode"] else "restore"
    path = values[key]
    if path is None:
        return None
    try:
        x0 = kind(found).load(typed(path, key), found.spec)
    except DataError as error:
        error.message = f"{key}: {error.message}"
        raise
    if values["restore"]:
        how: Any = "degraded" if values["degraded"] else "restore"
        if values["degraded"] and not built.model.process.told:
            message = "degraded: the samples do not tell where their holes are"
            hint = "degraded=false, or a run with process.operator.centre=fixed"
            raise ConfigError(message, hint)
        return Given(x0, how)
    walk = built.chosen["sampler"]["name"]
    if not isinstance(built.model.process, Flow):
        message = "encode: this process has no ODE that leads to the prior"
        hint = "restore=... spoils what is given and draws from there"
        raise ConfigError(message, hint)
    if built.sampler.noisy:
        message = f"encode: sampler `{walk}` adds noise on the way back"
        raise ConfigError(message, "sampler=dopri5, heun or ddim")
    return Given(x0, "encode")


def _way(built: Rebuilt, given: Given | None, values: Config) -> Way | None:
    """Where the samples of `interpolate=` lie, if its process knows such a way."""
    ends = values["interpolate"]
    if ends is None:
        return None
    process, spec = built.model.process, built.model.spec
    none = torch.zeros(0, *process.state(spec).shape)
    process.between(none, none, torch.zeros(0))  # refused before anything is drawn
    if given is not None and max(ends) >= len(given.x0):
        count = len(given.x0)
        message = f"interpolate: there is no sample {max(ends)}, encode gives {count}"
        raise ConfigError(message, f"interpolate in 0 .. {count - 1}")
    return Way(tuple(ends), values["n"])


def _write(drawing: Drawing, values: Config) -> None:
    """The files that were asked for, and what they took."""
    n, gallery, sampler = values["n"], drawing.gallery, drawing.built.sampler
    formats = values["format"]
    formats = formats if isinstance(formats, list) else [formats]
    gallery.export(n, formats, drawing.labels(torch.arange(n)))
    spoilt = _spoilt(drawing, n)
    if spoilt is not None:
        spoilt.export(n, formats, None)
    calls, counted = drawing.calls(), drawing.counted()
    gaps = _differences(drawing, spoilt, n)
    gallery.describe(
        {
            "checkpoint": str(drawing.found.folder),
            "step": drawing.found.step,
            "weights": drawing.found.hash,
            "data": drawing.found.spec.plain(),
            **{role: drawing.found.config[role] for role in ("dataset", "process")},
            "n": n,
            "network_calls_per_sample": calls,
            **counted,
            **drawing.built.chosen,
            **{key: values[key] for key in TOLD},
            **({"differences": gaps} if gaps else {}),
        }
    )
    steps = f"{sampler.steps} steps, " if sampler.steps else ""
    own = sampler.calls(sampler.steps)  # guidance may call a network more than once
    steps += f"{own} denoiser calls (nfe), " if own not in (0, calls) else ""
    what = "".join(f", {count} {name}" for name, count in counted.items())
    if gaps:
        tokens = drawing.found.spec.kind == "tokens"
        kind = (
            "part of the tokens other than" if tokens else "root mean square error to"
        )
        then = f", {gaps['spoilt']:.3g} when spoilt" if "spoilt" in gaps else ""
        say(f"{kind} what was given: {gaps['drawn']:.3g}{then}")
        if _lost(drawing, gaps["drawn"]):
            say("the steps are too few to lead back: steps=<more>, or sampler=dopri5")
    say(f"{n} samples, {steps}{calls:g} network calls each{what}")
    print(gallery.folder)


def _lost(drawing: Drawing, gap: float) -> bool:
    """Whether steps, and nothing that was asked for, lead far from what was encoded."""
    given, built = drawing.given, drawing.built
    meant = built.chosen["guidance"] or drawing.values["label"] is not None
    if given is None or given.how != "encode" or meant or not built.sampler.steps:
        return False
    return gap > LOST * float(given.x0.double().square().mean().sqrt())


def _spoilt(drawing: Drawing, n: int) -> Gallery | None:
    """What `restore=` starts from, in a folder beside the samples."""
    given, gallery = drawing.given, drawing.gallery
    if given is None or given.how != "restore" or drawing.way is not None:
        return None
    own = gallery.beside("spoilt")
    for chunk in own.missing(n):
        first = chunk * own.batch
        rows = torch.arange(first, first + own.batch, device=drawing.device)
        x = drawing.spoilt(rows)
        own.keep(chunk, x.float() if x.is_floating_point() else x)
    return own


def _differences(drawing: Drawing, spoilt: Gallery | None, n: int) -> dict[str, float]:
    """How far samples are from what was given, and were when that was spoilt.

    Root mean squares; of tokens, the part that is another.
    """
    given, rows = drawing.given, torch.arange(n)
    if given is None or drawing.way is not None:
        return {}
    sets = {"drawn": drawing.gallery} | ({"spoilt": spoilt} if spoilt else {})
    x0 = given.of(rows)
    gaps = {name: torch.cat(list(own.samples(n))) - x0 for name, own in sets.items()}
    if drawing.found.spec.kind == "tokens":
        return {name: float((gap != 0).double().mean()) for name, gap in gaps.items()}
    return {
        name: float(gap.double().square().mean().sqrt()) for name, gap in gaps.items()
    }
