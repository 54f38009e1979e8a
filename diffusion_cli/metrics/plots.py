"""Pictures of tables, as PNG. Registers nothing."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

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
) -> bytes:
    """Curves with error bars, by name; `rings` are drawn around some of the points."""
    # a quarter of the time torch takes: only who draws waits for it
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import StrMethodFormatter

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
    axes.set_xscale("log" if log_x else "linear")
    axes.set_yscale("log" if log_y else "linear")
    for axis in (axes.xaxis, axes.yaxis):
        if axis.get_scale() == "log" and _narrow(*axis.get_view_interval()):
            axis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axis.set_minor_formatter(StrMethodFormatter("{x:g}"))
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3, which="both")
    if len(curves) > 1 or rings:
        axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _narrow(low: float, high: float) -> bool:
    """Whether powers of ten alone would leave an axis without numbers."""
    return high / low < 30
