"""Points in the plane: densities one can see."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffusion_cli.core import Spec
from diffusion_cli.datasets import Batch, Dataset, datasets
from diffusion_cli.datasets.given import ARRAYS, array, broken, checked, files_in
from diffusion_cli.datasets.storage import staged
from diffusion_cli.rng import Rng
from diffusion_cli.settings import require

SIDE = 640  # pixels of a scatter plot
VIEW = 2.5  # it shows the square [-VIEW, VIEW]^2

Shape = Literal[
    "eight_gaussians", "moons", "swiss_roll", "checkerboard", "pinwheel", "rings"
]
Points = tuple[Tensor, Tensor]  # (N, 2) float64 and the component of each, (N,)


def _eight_gaussians(rng: Rng) -> Points:
    part = rng.child("part").integers(8, (len(rng),))
    return _polar(1.3, part * (math.pi / 4)) + _spread(rng, 0.1), part


def _moons(rng: Rng) -> Points:
    part = rng.child("part").integers(2, (len(rng),))
    arc = _polar(1.0, math.pi * rng.child("along").uniform((len(rng),)))
    arc = arc - torch.tensor([0.5, 0.25], dtype=torch.float64, device=arc.device)
    return 1.4 * arc * (1 - 2 * part)[:, None] + _spread(rng, 0.07), part


def _swiss_roll(rng: Rng) -> Points:
    turn = 1.5 * math.pi * (1 + 2 * rng.child("along").uniform((len(rng),)))
    centre = torch.tensor([2, 2 / (3 * math.pi)], device=turn.device).double()
    curl = (_polar(turn, turn) - centre) / 7  # the centre is E[turn (cos, sin)]
    return curl + _spread(rng, 0.07), torch.zeros_like(rng.rows)


def _checkerboard(rng: Rng) -> Points:
    cell = rng.child("part").integers(8, (len(rng),))  # the dark cells of a 4x4 board
    column = cell // 2
    row = 2 * (cell % 2) + column % 2
    corner = torch.stack((column, row), -1) - 2
    inside = rng.child("along").uniform((len(rng), 2))
    return 0.75 * (corner + inside), torch.zeros_like(cell)


def _pinwheel(rng: Rng) -> Points:
    part = rng.child("part").integers(5, (len(rng),))
    blade = _spread(rng, 1.0) * torch.tensor([0.3, 0.1], device=rng.device).double()
    radius, across = 1 + blade[:, 0], blade[:, 1]
    angle = part * (2 * math.pi / 5) + 0.25 * radius.exp()
    return 1.3 * (_polar(radius, angle) + _polar(across, angle + math.pi / 2)), part


def _rings(rng: Rng) -> Points:
    part = rng.child("part").integers(4, (len(rng),))
    angle = 2 * math.pi * rng.child("along").uniform((len(rng),))
    return _polar((1 + part) / 2, angle) + _spread(rng, 0.05), part


def _points(path: Path) -> Tensor:
    """The rows of a .csv with or without a header, or the points of an array."""
    if path.suffix.lower() in ARRAYS:
        return array(path)
    try:
        lines = path.read_text().splitlines()
        header = bool(lines) and any(c.isalpha() for c in lines[0].replace("e", ""))
        table = np.loadtxt(lines[header:], np.float32, delimiter=",", ndmin=2)
    except (OSError, ValueError) as error:
        raise broken(path, str(error)) from error
    return torch.from_numpy(table)


def _polar(radius: Tensor | float, angle: Tensor) -> Tensor:
    return torch.stack((radius * angle.cos(), radius * angle.sin()), -1)  # (N, 2)


def _spread(rng: Rng, std: float) -> Tensor:
    return std * rng.child("spread").normal((len(rng), 2), torch.float64)


class _Law(NamedTuple):
    draw: Callable[[Rng], Points]
    parts: int


SHAPES: dict[Shape, _Law] = {
    "eight_gaussians": _Law(_eight_gaussians, 8),
    "moons": _Law(_moons, 2),
    "swiss_roll": _Law(_swiss_roll, 0),
    "checkerboard": _Law(_checkerboard, 0),
    "pinwheel": _Law(_pinwheel, 5),
    "rings": _Law(_rings, 4),
}


@datasets("toy2d")
class Toy2D(Dataset):
    """Points of a density in the plane, (B, 2); sample i is a function of (seed, i).

    Every shape has mean 0, a variance of 0.3 to 1.5 per axis and lies, noise apart, in
    [-2.1, 2.1]^2. The eight gaussians stand on a ring of radius 1.3 with a standard
    deviation of 0.1: p(x) = 1/8 sum_k N(x; 1.3 (cos k pi/4, sin k pi/4), 0.1^2).

    No reference: the shapes are folklore, the formulas are this file.

    Args:
        shape: Which density.
        size: Number of samples in the set.
        seed: Another set of the same density; not the seed of the run.
        labels: Serve the component (gaussian, moon, blade, ring) as a class label.
    """

    def __init__(
        self,
        shape: Shape = "eight_gaussians",
        size: int = 100_000,
        seed: int = 0,
        labels: bool = False,
    ) -> None:
        require(size >= 1, "size", size, ">= 1")
        require(0 <= seed < 2**63, "seed", seed, "in 0 .. 2^63 - 1")
        parts = SHAPES[shape].parts
        require(not labels or parts > 0, "labels", labels, f"false for {shape}")
        names = tuple(str(part) for part in range(parts)) if labels else ()
        self.spec = Spec((2,), classes=len(names), names=names)
        self.shape, self.size, self.seed = shape, size, seed
        self._points, self._parts = torch.empty(0, 2), torch.empty(0, dtype=torch.int64)

    def prepare(self) -> None:
        if len(self._points) == 0:
            rng = Rng(self.seed, torch.arange(self.size)).child("toy2d")
            points, self._parts = SHAPES[self.shape].draw(rng)
            self._points = points.float()

    def __len__(self) -> int:
        return self.size

    def batch(self, indices: Tensor, rng: Rng) -> Batch:
        chosen = indices.to(self._points.device)
        x0 = self._points.index_select(0, chosen)
        if not self.spec.classes:
            return x0, {}
        return x0, {"label": self._parts.index_select(0, chosen)}

    def to(self, device: torch.device) -> bool:
        self._points, self._parts = self._points.to(device), self._parts.to(device)
        return True

    @classmethod
    def save(cls, x: Tensor, spec: Spec, folder: Path, first: int) -> None:
        table = x.detach().float().cpu().numpy()
        with staged(folder / f"{first:06d}.csv") as part:
            np.savetxt(part, table, "%.9g", ",", header="x,y", comments="")

    @classmethod
    def load(cls, path: Path, spec: Spec) -> Tensor:
        return torch.cat(
            [
                checked(file, _points(file), spec.shape)
                for file in files_in(path, (".csv",))
            ]
        )

    @classmethod
    def picture(cls, x: Tensor, spec: Spec) -> Tensor:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure((SIDE / 100, SIDE / 100), dpi=100, layout="constrained")
        canvas = FigureCanvasAgg(figure)
        view = (-VIEW, VIEW)
        axes = figure.add_subplot(aspect="equal", xlim=view, ylim=view)
        right, up = x.detach().float().cpu().numpy().T
        dot = min(20.0, 20_000 / max(1, len(x)))  # less ink per point in a crowd
        axes.scatter(right, up, s=dot, alpha=0.6, linewidths=0)
        if outside := int((x.abs() > VIEW).any(1).sum()):
            axes.set_title(f"{outside} of {len(x)} points lie outside")
        canvas.draw()  # type: ignore[no-untyped-call]
        shown = np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
        return torch.from_numpy(shown[..., :3].copy()).permute(2, 0, 1).contiguous()
