"""Pictures of tables, as PNG. Registers nothing."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

CLOSEST = 1.12  # ratio of two neighbours with labels of their own
Points = Sequence[tuple[float, float, float]]  # x, y, the spread of y


def chart(
    curves: Mapping[str, Points],
    x: str,
    y: str,
    *,
    log_x: bool = False,
    log_y: bool = False,
    rings: Sequence[tuple[float, float]] = (),
    ringed: str = "",
    floor: float | None = None,
) -> bytes:
    """Curves with error bars, by name; `rings` around points, a line at the `floor`."""
    # a quarter of the time torch takes: only who draws waits for it
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator, StrMethodFormatter

    figure = Figure(figsize=(6.4, 4.2), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.add_subplot()
    for name, points in curves.items():
        xs, ys, spreads = zip(*sorted(points), strict=True)
        axes.errorbar(
            xs, ys, spreads if any(spreads) else None, fmt="o-", ms=4, lw=1, label=name
        )
    if rings:
        xs, ys = zip(*rings, strict=True)
        axes.scatter(xs, ys, s=120, fc="none", ec="black", label=ringed)
    if floor is not None:
        axes.axhline(floor, color="gray", ls="--", lw=1, label="floor")
    axes.set_xscale("log" if log_x else "linear")
    axes.set_yscale("log" if log_y else "linear")
    if log_x:  # where the points are, and nowhere else
        axes.set_xticks(
            named([[x for x, *_ in points] for points in curves.values()]), minor=False
        )
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
    if log_y and _narrow(*axes.get_ylim()):
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(StrMethodFormatter("{x:g}"))
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3, which="both")
    if len(curves) > 1 or rings:
        axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def named(curves: Sequence[Sequence[float]]) -> list[float]:
    """Places of points whose labels do not touch on a logarithmic axis, by rising x.

    Of places too close to each other, those of most curves are kept.
    """
    counts = Counter(x for own in curves for x in set(own))
    kept: list[float] = []
    for x in sorted(counts, key=lambda x: (-counts[x], x)):
        if all(max(x / other, other / x) > CLOSEST for other in kept):
            kept.append(x)
    return sorted(kept)


def _narrow(low: float, high: float) -> bool:
    """Whether powers of ten alone would leave an axis without numbers."""
    return high / low < 30
