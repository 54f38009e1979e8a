"""Curves as SVG paths with ticks, in percent of a plot; the template draws them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from sys import float_info as info
from typing import NamedTuple

from matplotlib.ticker import LogLocator, MaxNLocator

LARGEST = 1e150  # a value that is drawn
POINTS = 240  # of a curve, at most; more are averaged in groups

_ROUND = [1, 2, 2.5, 5, 10]  # what the distance of two ticks may begin with

Point = tuple[float, float]


class Curve(NamedTuple):
    """A series of one run."""

    run: int  # its number in the report, which decides the colour
    name: str
    points: Sequence[Point]
    marked: Sequence[Point] = ()  # points to stand out


class Drawn(NamedTuple):
    """A curve on the page: the paths of a line, of its dots and of its marks."""

    run: int
    name: str
    line: str
    dots: str
    marks: str


class Tick(NamedTuple):
    """A tick at a place, with its label."""

    at: float
    label: str


@dataclass(frozen=True)
class Chart:
    """What the template draws."""

    x: str
    y: str
    curves: list[Drawn]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    low: bool


class _Axis:
    """Values to places: linear, or logarithmic where all values are positive."""

    def __init__(self, values: Iterable[float], log: bool) -> None:
        found = list(values)
        low, high = min(found), max(found)
        self.log = log and 10 * info.min < low and high < info.max / 10
        low, high = self._scaled(low), self._scaled(high)
        size = 1.0 if self.log else max(abs(low), abs(high), 1.0)  # a decade
        if high - low < 1e-9 * size:  # one value: in the middle
            low, high = low - size / 2, high + size / 2
        self.low, self.high = low, high

    def __call__(self, value: float) -> float:
        share = (self._scaled(value) - self.low) / (self.high - self.low)
        return round(100 * share, 2)

    def ticks(self, count: int) -> list[Tick]:
        """About `count` round values that lie on the axis."""
        low, high = (self._value(edge) for edge in (self.low, self.high))
        decades = self.high - self.low
        if not self.log or decades < 0.5:
            found = MaxNLocator(count, steps=_ROUND).tick_values(low, high)
        else:
            subs = (1.0,) if decades > 2 else (1.0, 2.0, 5.0)
            found = LogLocator(10, subs, numticks=count + 1).tick_values(low, high)
        inside = [float(v) for v in found if self._inside(float(v))]
        return [Tick(self(value), f"{value:.6g}") for value in inside]

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self.log else value

    def _value(self, scaled: float) -> float:
        return 10**scaled if self.log else scaled

    def _inside(self, value: float) -> bool:
        if self.log and value <= 0:
            return False
        slack = 1e-9 * (self.high - self.low)
        return self.low - slack <= self._scaled(value) <= self.high + slack


def chart(
    curves: Sequence[Curve],
    x: str,
    y: str,
    *,
    log_x: bool = False,
    log_y: bool = True,
    dots: bool = False,
    low: bool = False,
) -> Chart | None:
    """The chart of some curves; None if they have no finite point.

    Args:
        curves: One for each run.
        x: Name of the axis.
        y: Name of the axis.
        log_x: Logarithmic, where all values are positive.
        log_y: Logarithmic, where all values are positive.
        dots: Mark every point.
        low: Less high than others.
    """
    curves = [curve._replace(points=thinned(curve.points)) for curve in curves]
    curves = [curve for curve in curves if curve.points]
    if not curves:
        return None
    points = [point for curve in curves for point in curve.points]
    across = _Axis((x for x, _ in points), log_x)
    up = _Axis((y for _, y in points), log_y)

    def places(points: Sequence[Point]) -> list[str]:
        return [f"{across(x):g} {round(100 - up(y), 2):g}" for x, y in points]

    drawn = []
    for run, name, own, marked in curves:
        line = "M" + "L".join(places(own))
        shown = dots or len(own) == 1
        spots = "".join(f"M{place}h0" for place in places(own)) if shown else ""
        marks = "".join(f"M{place}h0" for place in places(marked))
        drawn.append(Drawn(run, name, line, spots, marks))
    return Chart(x, y, drawn, across.ticks(6), up.ticks(5), low)


def thinned(points: Sequence[Point], most: int = POINTS) -> list[Point]:
    """At most `most` points, means of neighbours; those that an axis can hold only."""
    sound = [p for p in points if abs(p[0]) < LARGEST and abs(p[1]) < LARGEST]
    group = -(-len(sound) // most) if sound else 1
    parts = [sound[i : i + group] for i in range(0, len(sound), group)]
    return [
        (sum(p[0] for p in part) / len(part), sum(p[1] for p in part) / len(part))
        for part in parts
    ]
