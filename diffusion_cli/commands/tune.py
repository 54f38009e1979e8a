"""`dcli tune`: where a sampler of few steps should take them, for a run's weights."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from diffusion_cli import assemble, checkpoint, failpoints, fitting
from diffusion_cli import device as devices
from diffusion_cli.derived import Derived
from diffusion_cli.device import memory
from diffusion_cli.errors import CheckpointError, ConfigError
from diffusion_cli.paths import assignment
from diffusion_cli.processes.affine import Affine
from diffusion_cli.rebuild import Rebuilt, rebuild
from diffusion_cli.rng import Rng
from diffusion_cli.samplers import Sampler
from diffusion_cli.samplers.noise_grid import Warped
from diffusion_cli.stop import Stop
from diffusion_cli.tracking import say
from diffusion_cli.tuning import KNOTS, Trajectories, badness, most_trials, search

Config = dict[str, Any]
EXACT: Config = {
    "name": "eab",
    "steps": 200,
    "order": 4,
    "correct": False,
    "scale": 0.02,
    "grid": {"name": "asinh", "scale": 0.02, "sigma_min": None, "sigma_max": None},
}


def run(values: Config, overrides: list[str]) -> float | None:
    """Tune, and keep the grid under the weights."""
    failpoints.arm(os.environ.get("DCLI_FAULT"))
    with Stop() as stop:
        found = checkpoint.load(values["ckpt"])
        device = devices.choose(values["device"])
        built = rebuild(
            found,
            sampler=values["sampler"],
            guidance=values["guidance"],
            steps=values["steps"],
            nfe=values["nfe"],
            weights=values["weights"],
            device=device,
            network_precision=values["precision"],
        )
        node, sampler = built.chosen["sampler"], built.sampler
        name = node["name"]
        _demand_tunable(built, name)
        devices.tune(device, deterministic=False)
        say(f"{found.folder} ({values['weights']} weights), {devices.label(device)}")
        say(f"{name}, {sampler.steps} steps, {values['n']} trajectories")
        stop.begin()
        half = values["n"] // 2
        batch = values["batch"]
        with memory(f"tune: batch={batch}", f"batch={max(1, batch // 2)}"):
            known = list(_followed(built, values, device, 0, half, stop))
            knots = _best(known, sampler, values["rounds"], stop)
            tuned = _with(sampler, knots)
            others = list(_followed(built, values, device, half, values["n"], stop))
            own = torch.cat([some.errors(built.sampler) for some in others])
            new = torch.cat([some.errors(tuned) for some in others])
    typical = [math.exp(badness(errors)) for errors in (own, new)]
    say(
        f"typical error of {len(new)} other samples: {typical[0]:.3g} with the grid "
        f"`{node['grid']['name']}`, {typical[1]:.3g} tuned"
    )
    if typical[1] >= typical[0]:
        say("nothing was kept: the sampler's own grid is as good")
        return None
    kept, derived = built.place.grid(sampler.steps), Derived(found, values["weights"])
    earlier = _earlier(derived, kept)
    if earlier is not None:
        past = [some.errors(_with(sampler, earlier)) for some in others]
        typical.append(math.exp(badness(torch.cat(past))))
    if len(typical) == 3 and typical[2] <= typical[1]:
        say(f"the grid kept before stays: {typical[2]:.3g}")
    else:
        told = ("n", "rounds", "seed")
        about = {key: values[key] for key in told} | built.chosen | {"step": found.step}
        derived.write(kept, {"knots": knots, "errors": torch.stack((own, new))}, about)
    words = [assignment("ckpt", str(found.home)), f"steps={sampler.steps}"]
    words += [f"weights={values['weights']}"] * (values["weights"] != "ema")
    say(" ".join(["dcli sample", *words, built.place.spelled(), "sampler.grid=tuned"]))
    print(derived.folder / kept)
    return min(typical[1:]) / typical[0]


def _earlier(derived: Derived, kept: str) -> Tensor | None:
    """The knots that an earlier command kept, if they are sound."""
    try:
        knots = (derived.read(kept) or {}).get("knots")
    except CheckpointError:
        return None
    return knots if knots is not None and knots.shape == (KNOTS,) else None


def _demand_tunable(built: Rebuilt, name: str) -> None:
    fitting.demand("tune: the grid", "tuned", Affine, built.model.process)
    if getattr(built.sampler, "grid", None) is None:
        message = f"sampler: `{name}` has no grid that could be tuned"
        raise ConfigError(message, "sampler=eab, dpmpp, unipc, heun or ddim")
    if built.sampler.noisy:
        message = f"sampler: `{name}` draws noise; no trajectory is the exact one"
        raise ConfigError(message, "sampler=eab, dpmpp, unipc, heun or ddim")


def _followed(
    built: Rebuilt,
    values: Config,
    device: torch.device,
    first: int,
    last: int,
    stop: Stop,
) -> Iterator[Trajectories]:
    """The trajectories of samples first .. last - 1, in batches."""
    process, spec = built.model.process, built.model.spec
    exact = assemble.sampler(EXACT, process)
    for place in range(first, last, values["batch"]):
        end = min(place + values["batch"], last)
        rows = torch.arange(place, end, device=device)
        rng = Rng(values["seed"], rows).child("sample")
        cond = {"rows": rows}
        if spec.classes:
            own = Rng(values["seed"], rows).child("label")
            cond["label"] = own.integers(spec.classes, (len(rows),))
        start = process.prior((len(rows), *process.state(spec).shape), rng)
        denoiser = built.denoiser.given(**cond)
        yield Trajectories.followed(denoiser, start, rng, exact)
        if stop.requested:
            stop.end("nothing was kept")


def _best(
    known: list[Trajectories], sampler: Sampler, rounds: int, stop: Stop
) -> Tensor:
    """The knots that lead these trajectories closest to their ends."""

    def bad(knots: Tensor) -> float:
        try:
            tried = _with(sampler, knots)
            errors = torch.cat([some.errors(tried) for some in known])
        except ValueError:  # two steps fell together
            return math.inf
        return badness(errors) if bool(errors.isfinite().all()) else math.inf

    total = most_trials(rounds)
    with tqdm(total=total, unit="trial", disable=None, dynamic_ncols=True) as bar:
        found = torch.zeros(KNOTS)
        for best, _ in search(bad, rounds):
            found = best
            bar.update()
            if stop.requested:
                stop.end("nothing was kept")
    return found


def _with(sampler: Sampler, knots: Tensor) -> Sampler:
    """The same sampler on the grid of these knots."""
    other: Any = copy.copy(sampler)
    other.grid = Warped(knots)
    return other  # type: ignore[no-any-return]
