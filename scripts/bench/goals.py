"""The goals, and what a measurement of one came to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from duel import Fault, Numbers, Setting, Side, compare, ratios, summary


@dataclass(frozen=True)
class Goal:
    """What is to be reached, as a ratio within one run."""

    name: str
    what: str
    wanted: str
    gpu: bool = False


GOALS = {
    goal.name: goal
    for goal in (
        Goal(
            "G1",
            "CPU training step, the CIFAR-10 U-Net, batch 8, defaults, against "
            "diffusers as its example trains",
            ">= 1.7x faster",
        ),
        Goal(
            "G2",
            "the same against the best eager setting of diffusers, same precision",
            ">= 1.05x faster",
        ),
        Goal("G3", "share of this machine's own peak of convolutions", ">= 62 %"),
        Goal("G4", "optimiser and average of weights, against diffusers'", ">= 2.2x"),
        Goal("G5", "images per second of the data, against torchvision", ">= 40x"),
        Goal(
            "G6",
            "`--help`, `--cfg job`, an error in the config",
            "0.25 s, the other two 0.6 s, and 1/15 of `import diffusers`",
        ),
        Goal("G7", "`dcli train` until its first step", "<= 1.15x `import torch`"),
        Goal(
            "G8",
            "a sampler's step without its network, against DDIMScheduler and "
            "DDIMPipeline",
            ">= 8x and >= 14x less",
        ),
        Goal("G9", "50 steps of DDIM on a CPU, against DDIMPipeline", ">= 1.7x faster"),
        Goal(
            "G10",
            "error of `eab`, the default of `vp`, `subvp` and `ve`, at equal calls, "
            "against diffusers' DPM++ 2M as it is, and at its best",
            ">= 8x less, and <= 0.35x",
        ),
        Goal(
            "G11",
            "the same against the best sampler of any peer, judged where that stops, "
            "and at the data",
            "<= 0.90x, and <= 0.50x",
        ),
        Goal(
            "G11b",
            "sliced W2 to 8 normals on a circle after 5, 10 and 20 calls, and after 20 "
            "of a sampler that draws noise",
            "<= 0.06, 0.036 and 0.030, and 0.018",
        ),
        Goal("G12", "samplers are correct: tests of orders and limits", "all pass"),
        Goal(
            "G13", "training waits for a checkpoint, against torch.save", ">= 8x less"
        ),
        Goal("G14", "loading and restoring it, against torch.load", ">= 2x faster"),
        Goal(
            "G15",
            "recomputation of activations: memory against time",
            ">= 1.6x less at <= 1.06x time",
        ),
        Goal(
            "G16",
            "GPU training, batch 512, against diffusers' example and its best",
            ">= 3x and >= 1.3x, >= 7,500 img/s on an H200",
            gpu=True,
        ),
        Goal(
            "G17",
            "GPU, 50 steps for one sample, against DDIMPipeline",
            ">= 4x faster",
            gpu=True,
        ),
    )
}


@dataclass
class Result:
    """What one comparison came to.

    Args:
        goal: Its name; empty for what is only told.
        measured: In a few words, with numbers.
        met: Whether that reaches the goal; None decides nothing.
        title: Of the table of its sides.
        sides: Summaries of every number, by side.
        of: Which of the numbers is compared.
        ratios: How many times as much of it each other side needs.
        faults: Sides that could not be measured, and why.
        also: Other numbers that the table shows.
    """

    goal: str
    measured: str
    met: bool | None
    title: str
    of: str = "worked"
    sides: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    ratios: dict[str, dict[str, float]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    also: list[str] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)


Row = Callable[[Setting], list[Result]]
ROWS: dict[str, Row] = {}


def row(name: str) -> Callable[[Row], Row]:
    """Enter a function that measures under the name it is asked for by."""

    def enter(function: Row) -> Row:
        ROWS[name] = function
        return function

    return enter


def contest(
    goal: str, title: str, sides: list[Side], setting: Setting, of: str = "worked"
) -> tuple[Result, dict[str, Numbers]]:
    """Compare the first side with the others; the caller says what it means.

    Args:
        goal: Its name.
        title: Of the table.
        sides: Ours first.
        setting: How.
        of: The number whose ratio counts.
    """
    seen, faults = compare(sides, setting)
    own, *others = seen
    tables = {
        name: {key: summary(values) for key, values in numbers.items()}
        for name, numbers in seen.items()
    }
    against = {name: ratios(seen[own][of], seen[name][of]) for name in others}
    return Result(goal, "", None, title, of, tables, against, faults), seen


__all__ = ["GOALS", "ROWS", "Fault", "Goal", "Result", "Row", "contest", "row"]
