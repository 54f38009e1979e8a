"""All comparisons as one picture: how many times as much the others need."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from goals import GOALS
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, StrMethodFormatter
from matplotlib.transforms import blended_transform_factory

LINE = 0.19  # inches for a bar or a title
OWN, THEIRS = "#9aa7b4", "#2f6fb2"  # where we need more, and where they do
PLAIN = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
ORDER = list(GOALS)
TICKS = (0.5, 1, 2, 5, 10, 20, 50, 100)


class Bar(NamedTuple):
    """One side of a comparison against ours; without a ratio it is a title."""

    name: str
    ratio: dict[str, float] | None


def bars(known: dict[str, Any]) -> list[Bar]:
    """Titles, and below each the others that were measured."""
    found: list[Bar] = []
    results = [r for row in known.values() for r in row["results"] if r["goal"]]
    for result in sorted(results, key=lambda result: ORDER.index(result["goal"])):
        others = {
            name: ratio
            for name, ratio in result["ratios"].items()
            if not name.startswith("dcli")
        }
        if others:
            found.append(Bar(f"{result['goal']}  {result['title']}", None))
            found += [Bar(name, ratio) for name, ratio in others.items()]
    return found


def draw(known: dict[str, Any], path: Path) -> None:
    """Medians as bars on a logarithmic axis, lines from the least to the most."""
    found = bars(known)
    figure = Figure(figsize=(7.6, LINE * len(found) + 0.9), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    across = blended_transform_factory(figure.transFigure, axes.transData)
    names = []
    for place, (name, ratio) in enumerate(found):
        if ratio is None:
            title = axes.text(0.01, place, name, transform=across, va="center")
            title.set(bbox=PLAIN, weight="bold", size=9, in_layout=False)
            names.append("")
            continue
        middle, low, high = (ratio[key] for key in ("median", "min", "max"))
        colour = THEIRS if middle > 1 else OWN
        axes.barh(place, middle - 1, left=1, height=0.7, color=colour)
        axes.plot([low, high], [place, place], color="black", lw=1)
        names.append(f"{name}  {middle:.3g}")
    axes.axvline(1, color="black", lw=0.8)
    axes.set_xscale("log")
    axes.set_xticks(TICKS)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(found) - 0.4, -0.6)
    about = "times as much as dcli (processor time, memory or error)"
    axes.set_xlabel(about, loc="right")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, dpi=110)
