"""Quality against network calls."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

from diffusion_cli.errors import ConfigError, UnknownName
from diffusion_cli.metrics import Metric, Result, Subject, Walk, metrics
from diffusion_cli.metrics.plots import chart
from diffusion_cli.settings import require


class Point(NamedTuple):
    """What one way to sample costs and gives."""

    name: str  # the sampler, and its grid if one was asked for
    calls: float
    value: float
    spread: float | None  # over seeds, if there are several


@metrics("nfe_curve")
class NFECurve(Metric):
    """One metric against network calls, for several samplers and grids at once.

    A point is on the Pareto front if none is better for as few calls. Calls of
    networks are counted, so guidance that asks twice counts twice. What a sampler
    cannot do (fewer calls than a step, a process it does not suit) is left out and
    told. `spread` is that over seeds.

    Reference: Karras et al. 2022, figure 2, arXiv:2206.00364.

    Args:
        of: The metric; its first number is shown.
        samplers: Names that `sampler=` takes.
        grids: Names of grids for each of them; none leaves their own.
        calls: Denoiser calls that a sample may take, as `nfe=`.
    """

    def __init__(
        self,
        of: Metric,
        samplers: tuple[str, ...] = ("euler", "heun", "dpmpp", "unipc", "ancestral"),
        grids: tuple[str, ...] = (),
        calls: tuple[int, ...] = (5, 10, 20, 50),
    ) -> None:
        require(bool(samplers), "samplers", list(samplers), "one name or more")
        good = bool(calls) and min(calls) >= 1
        require(good, "calls", list(calls), "numbers >= 1")
        self.of, self.samplers, self.grids = of, samplers, grids
        self.budgets = calls

    def __call__(self, subject: Subject) -> Result:
        ways: list[tuple[str, Subject]] = []
        points: list[Point] = []
        told: dict[str, None] = {}
        values: dict[str, float] = {}
        name, protocol, floor = "", "", None
        for sampler, grid, budget in product(
            self.samplers, self.grids or (None,), sorted(self.budgets)
        ):
            label = sampler if grid is None else f"{sampler} {grid}"
            try:
                ways.append((label, subject.walked(Walk(sampler, grid, budget))))
            except UnknownName:
                raise  # a typo ends the command before anything is drawn
            except ConfigError as error:
                told[f"left out: {label} at {budget} calls: {error.message}"] = None
        for label, walked in ways:
            found = self.of(walked)
            name, value = next(iter(found.values.items()))
            spread = found.values.get(f"{name}_sd", found.values.get(f"{name}_se"))
            floor = found.values.get(f"{name}_floor")
            point = Point(label, walked.calls(), value, spread)
            if point not in points:  # a few calls more are often no step more
                points.append(point)
            told |= dict.fromkeys(found.notes)
            protocol = found.protocol
        if not points:
            message = f"metric.nfe_curve: nothing is left; {next(iter(told))}"
            raise ConfigError(message, "metric.samplers=[...]; dcli list sampler")
        front = pareto(points, self.of.higher)
        for point in points:
            values[f"{point.name.replace(' ', '_')}_{point.calls:g}"] = point.value
        table: list[dict[str, float | str]] = [
            {
                "sampler": point.name,
                "calls": point.calls,
                name: point.value,
                "spread": "" if point.spread is None else point.spread,
                "floor": "" if floor is None else floor,
                "pareto": "yes" if point in front else "",
            }
            for point in points
        ]
        shown = ", ".join(f"{p.name} {p.calls:g}" for p in front)
        notes = (*told, f"{name}; Pareto front: {shown}")
        picture = draw(points, front, name, floor)
        files = {"nfe_curve.png": picture}
        return Result(values, table, notes, files, protocol)


def pareto(points: Sequence[Point], higher: bool = False) -> list[Point]:
    """Those that no other point with as few calls equals, by rising calls."""

    def worth(point: Point) -> float:
        return -point.value if higher else point.value

    front: list[Point] = []
    for point in sorted(points, key=lambda p: (p.calls, worth(p))):
        if not front or worth(point) < worth(front[-1]):
            front.append(point)
    return front


def draw(
    points: Sequence[Point], front: Sequence[Point], name: str, floor: float | None
) -> bytes:
    """A curve for each sampler, rings around the front, a line at the floor."""
    curves: dict[str, list[tuple[float, float, float]]] = {}
    for point in points:
        curves.setdefault(point.name, []).append(
            (point.calls, point.value, point.spread or 0.0)
        )
    low = min(point.value for point in points)
    low = low if floor is None else min(low, floor)
    return chart(
        curves,
        "network calls per sample",
        name,
        log_x=True,
        log_y=low > 0,
        rings=[(point.calls, point.value) for point in front],
        ringed="Pareto front",
        floor=floor,
    )
