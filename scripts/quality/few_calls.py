"""Which solver and grid come closest to exact trajectories at few network calls?

Root mean square errors of samples, for solvers, orders and grids side by side: on
problems with exact denoisers (relative to the data; geometric means over problems and 6
to 50 calls), or on a trained run (in the units of its data, by number of calls, against
75 steps of Heun's method).

    python scripts/quality/few_calls.py
    python scripts/quality/few_calls.py runs/digits-...
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))

from subjects.exact import CALLS, LARGEST, tuning
from subjects.own_errors import Exact

from diffusion_cli import checkpoint, config
from diffusion_cli.denoiser import Denoiser
from diffusion_cli.rebuild import rebuild
from diffusion_cli.rng import Rng
from diffusion_cli.samplers import samplers

COUNT = 128
RHO = {"name": "rho", "rho": 20.0}
EVEN = {"name": "log_sigma"}
ASINH = {"name": "asinh"}


def nodes() -> Iterator[tuple[str, dict[str, Any]]]:
    """What is compared, without `steps`."""
    for order in (1, 2, 3, 4):
        yield f"`eab` {order}", {"name": "eab", "order": order, "grid": ASINH}
    for scale in (0.02, 0.1, 0.3):
        yield f"`eab` 4, scale {scale}", {"name": "eab", "scale": scale, "grid": ASINH}
    for scale in (0.01, 0.02, 0.05):
        grid = {**ASINH, "scale": scale}
        yield f"`eab` 4, grid {scale}", {"name": "eab", "grid": grid}
    yield "`eab` 4, `rho` 20", {"name": "eab", "grid": RHO}
    yield "`eab` 4, `log_sigma`", {"name": "eab", "grid": EVEN}
    for order in (2, 3):
        how = {"name": "eab", "order": order, "correct": True, "grid": ASINH}
        yield f"`eab` {order}, corrected", how
    for order in (2, 3):
        how = {"name": "dpmpp", "order": order, "grid": EVEN}
        yield f"`dpmpp` {order}, `log_sigma`", how
    how = {"name": "dpmpp", "order": 2, "correct": True, "grid": EVEN}
    yield "`unipc` 2, `log_sigma`", how
    yield "`euler`, `rho` 7", {"name": "euler", "grid": {"name": "rho"}}


def drawn(node: dict[str, Any], denoiser: Denoiser, x: Tensor) -> Tensor:
    """The end of a trajectory from `x`."""
    rng = Rng(0, torch.arange(len(x)))
    *_, end = samplers.build(node).trajectory(denoiser, x, rng)
    return end


def typical(errors: list[float]) -> float:
    return math.exp(sum(map(math.log, errors)) / len(errors))


def exact() -> None:
    """A table of errors with exact denoisers, a column for each problem."""
    problems = tuning()
    known = []
    for problem in problems.values():
        start = problem.start() * LARGEST
        known.append((Exact(problem), start, problem.follow(start, LARGEST)))
    print("| | error | " + " | ".join(problems) + " |")
    print("|---" * (len(problems) + 2) + "|")
    for name, node in nodes():
        row = []
        for denoiser, start, end in known:
            gaps = [drawn({**node, "steps": n}, denoiser, start) - end for n in CALLS]
            row.append(typical([float(gap.square().mean().sqrt()) for gap in gaps]))
            row[-1] /= float(end.std())
        cells = [f"{value:.2g}" for value in (typical(row), *row)]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def trained(run: str) -> None:
    """A table of errors with a network, a column for each number of calls."""
    found = checkpoint.load(run)
    node = config.read(config.folder() / "sampler" / "eab.yaml")
    model = rebuild(found, sampler=node).model
    rng = Rng(0, torch.arange(COUNT))
    cond = {}
    if model.spec.classes:
        drawn_labels = rng.child("label").integers(model.spec.classes, (COUNT,))
        cond = {"label": drawn_labels}
    denoiser = model.given(**cond)
    start = model.process.prior((COUNT, *model.spec.shape), rng.child("sample"))
    many = {"name": "heun", "steps": 75, "grid": {"name": "rho"}}
    end, calls = drawn(many, denoiser, start), (5, 6, 8, 10, 15, 20)
    print("| | " + " | ".join(f"{n} calls" for n in calls) + " |")
    print("|---" * (len(calls) + 1) + "|")
    for name, node in nodes():
        gaps = [drawn({**node, "steps": n}, denoiser, start) - end for n in calls]
        cells = [f"{float(gap.square().mean().sqrt()):.3f}" for gap in gaps]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    trained(sys.argv[1]) if len(sys.argv) > 1 else exact()
