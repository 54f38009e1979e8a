"""Pictures of tables: what an axis names."""

from __future__ import annotations

import pytest

from diffusion_cli.metrics.plots import named


@pytest.mark.parametrize(
    "curves, ticks",
    [
        # heun takes one call less than the others, which decide
        ([[5, 9, 19, 49], [5, 10, 20, 50], [5, 10, 20, 50]], [5, 10, 20, 50]),
        ([[5, 9, 19, 49]], [5, 9, 19, 49]),
        ([[7, 15], [8, 16]], [7, 8, 15]),  # 16 / 15 is too close: the first stays
    ],
)
def test_ticks_stand_where_most_curves_have_points(
    curves: list[list[float]], ticks: list[float]
) -> None:
    assert named(curves) == ticks
