"""Section 2: the levels R0 to R5, and a resume that is exact for all there is."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from choices import formulation, node, options
from harness import SAMPLE, TRAIN, Place, control, controls, place, trained
from test_resume import data
from tiny import interrupted, outcome, tiny

from diffusion_cli import assemble, config
from diffusion_cli.commands import train
from diffusion_cli.errors import ConfigError

__all__ = ["controls", "place"]  # fixtures
pytestmark = pytest.mark.fault

NETWORKS: dict[str, dict[str, Any]] = {
    "mlp": {"width": 16, "depth": 1, "dropout": 0.2},
    "unet": {"channels": 8, "multipliers": [1, 1], "blocks": 1, "heads": 2},
    "dit": {"width": 16, "depth": 1, "heads": 2, "patch": 2},
    "token_transformer": {"width": 16, "depth": 1, "heads": 2, "dropout": 0.2},
    "encoder": {"channels": 8, "multipliers": [1, 1], "blocks": 1},
}
DATA = {
    "toy2d": {"size": 100},
    "digits": {},
    "digit_tokens": {},
    "text": {"length": 16},
    "markov": {"length": 8},
}
ELSEWHERE = {  # their samples come from files; the class `Images` serves them
    "mnist", "fashion_mnist", "cifar10", "image_folder", "pairs",
}  # fmt: skip
ROLES = ("parametrisation", "objective", "weight", "time", "optimizer", "network")


def every() -> Iterator[tuple[str, str]]:
    """All components that a step may run, and all data that lie in the package."""
    roles = config.roles()
    for role in (*ROLES, "dataset"):
        for name in roles[role].names():
            if name not in ELSEWHERE:
                yield role, name


def body(role: str, name: str) -> dict[str, Any]:
    sizes = {"network": NETWORKS, "dataset": DATA}.get(role, {})
    own = {"name": name, **sizes.get(name, {})}
    if role == "parametrisation" and name in ("npr", "sn", "learned"):
        own["mean"] = {"name": "eps"}
    if role == "objective":
        own |= {"weight": {"name": "simple"}, "time": {"name": "uniform"}}
    return own


def candidates(role: str, name: str) -> Iterator[dict[str, Any]]:
    """Configs around a component, from the likeliest on."""
    choices = options(role) if role == "objective" else []
    bodies = [node(role, choice) for choice in choices]
    bodies = [each for each in bodies if each["name"] == name] or [body(role, name)]
    kinds = ("npr", "learned", "classes") if role == "objective" else ()
    for process in ("flow", *options("process")):
        if process == "cold_desaturate":
            continue
        plain = formulation(process) | {"sampler": tiny()["sampler"]} | data(process)
        for own in bodies:
            if role in ("weight", "time"):
                yield plain | {"objective": {**plain["objective"], role: own}}
                continue
            yield plain | {role: own}
            for kind in kinds:
                yield plain | {
                    role: own,
                    "parametrisation": body("parametrisation", kind),
                }
        if role == "network":
            classes = {"parametrisation": body("parametrisation", "classes")}
            yield (
                plain
                | classes
                | {role: own, "objective": node("objective", "classify")}
            )
        if role == "parametrisation":
            for objective in ("hybrid", "second_moment", "classify"):
                yield plain | {
                    role: body(role, name),
                    "objective": node("objective", objective),
                }


def fitting(role: str, name: str) -> dict[str, Any]:
    """A config with this component that the program accepts."""
    images = {
        "dataset": {"name": "digits"},
        "network": {"name": "encoder", **NETWORKS["encoder"]},
    }
    unets = {
        "dataset": {"name": "digits"},
        "network": {"name": "unet", **NETWORKS["unet"]},
    }
    for found in candidates(role, name):
        for more in ({}, unets, images):
            own = {**found, **{k: v for k, v in more.items() if k != role}}
            try:
                values = tiny(**own)
                assemble.parts(values, assemble.spec_of(values))
            except (ConfigError, KeyError, ValueError):
                continue
            return own
    pytest.fail(f"no config takes {role}={name}")


@pytest.mark.parametrize(("role", "name"), list(every()))
def test_every_component_resumes(
    role: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R1, over the registry."""
    monkeypatch.chdir(tmp_path)
    own = fitting(role, name) | {
        "trainer": {"steps": 6},
        "every": {"log": 2, "save": 2},
    }
    train.run(tiny(out="whole", **own), [])
    for step in (1, 5):
        assert interrupted(Path("parts"), step, **own) == 143
    train.run(tiny(out="parts", **own), [])
    assert outcome(Path("parts")) == outcome(Path("whole"))


def poison() -> None:
    """In the child: global generators are stirred at every step."""
    from diffusion_cli import tracking

    update = tracking.Meter.update

    def stirring(meter: Any, progress: Any) -> None:
        torch.manual_seed(progress.step)
        np.random.seed(progress.step)
        random.seed(progress.step)
        update(meter, progress)

    tracking.Meter.update = stirring  # type: ignore[method-assign]


def test_global_generators_decide_nothing(place: Place) -> None:
    """R0."""
    assert place.dcli(*TRAIN, before=poison).code == 0
    assert outcome(place.run) == control()


@pytest.mark.parametrize("round_", range(3))
def test_stopped_anywhere(round_: int, place: Place) -> None:
    """R1: kills between any two steps, several times."""
    chance = random.Random(round_)
    for step in sorted(chance.sample(range(1, 12), 2)):
        told = place.dcli(*TRAIN, "every.save=1", fault=f"step.opt@{step}:kill")
        assert told.code == -9
    assert place.dcli(*TRAIN).code == 0
    assert outcome(place.run) == control()


def samples(there: Place, *words: str) -> Any:
    told = there.dcli(
        *SAMPLE, "format=npz", *words, f"out=run/{len(list(there.run.iterdir()))}"
    )
    assert told.code == 0, told.err
    folder = there.work / told.out.strip()
    return np.load(folder / "samples.npz", allow_pickle=False)["samples"]


def test_samples_depend_on_their_index_alone(place: Place) -> None:
    """R4, R5: the same bits; another batch moves the last ones."""
    place.put(trained())
    many, few, wide = (
        samples(place, *w)
        for w in (("n=20", "batch=4"), ("n=3", "batch=4"), ("n=20", "batch=8"))
    )
    assert (many[:3] == few).all()
    assert np.abs(many - wide).max() <= 1e-5
