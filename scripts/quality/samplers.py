"""How close does every sampler come to the data, at how many network calls?

The exact W2 distance between 2,000 samples of a trained model of points in the plane
and 2,000 points of its data, for every `sampler=` at 10, 20 and 50 calls, beside the
distances between as many points of the data, which are all that can be asked for.

    dcli train exp=toy2d
    python scripts/quality/samplers.py runs/toy2d-...
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import ot
import torch
from torch import Tensor

from diffusion_cli import assemble, checkpoint, config
from diffusion_cli.denoiser import Denoiser
from diffusion_cli.errors import ConfigError
from diffusion_cli.rebuild import rebuild
from diffusion_cli.rng import Rng
from diffusion_cli.samplers import Sampler

COUNT, CALLS = 2000, (10, 20, 50)


def w2(x: Tensor, y: Tensor) -> float:
    """The exact W2 distance between two clouds of as many points."""
    cost = ot.dist(x.double().numpy(), y.double().numpy())
    return float(ot.emd2([], [], cost, numItermax=10_000_000) ** 0.5)


def nodes() -> Iterator[tuple[str, dict]]:
    """Every sampler yaml, with the defaults of its class."""
    for path in sorted((config.folder() / "sampler").glob("*.yaml")):
        yield path.stem, config.read(path)


def drawn(sampler: Sampler, denoiser: Denoiser) -> Tensor:
    """Samples from the prior, all in one batch."""
    rng = Rng(0, torch.arange(COUNT)).child("sample")
    *_, x = sampler.trajectory(denoiser, denoiser.process.prior((COUNT, 2), rng), rng)
    return x


def cell(value: float) -> str:
    return f"{value:.3f}" if value < 100 else f"{value:.0e}"


def main(run: str) -> None:
    """Print a table in Markdown."""
    found = checkpoint.load(run)
    data = assemble.dataset(found.config)
    data.prepare()
    rows = torch.arange(10 * COUNT)
    points, cond = data.batch(rows, Rng(0, rows))
    real, *others = points.split(COUNT)
    floor = sorted(w2(real, other) for other in others)
    label = {key: value[:COUNT] for key, value in cond.items()}
    print(
        f"Between {COUNT} and {COUNT} points of the data: W2 = {floor[4]:.3f}", end=""
    )
    print(f" ({floor[0]:.3f} to {floor[-1]:.3f} in 9 pairs)\n")
    print("| `sampler=` |" + "".join(f" {calls} calls |" for calls in CALLS))
    print("|---|" + "---|" * len(CALLS))
    for name, node in nodes():
        row, adaptive = [], "steps" not in node
        for calls in CALLS[:1] if adaptive else CALLS:
            try:
                built = rebuild(found, sampler=node, nfe=None if adaptive else calls)
            except ConfigError as error:
                print(f"{name}: {error.render()}", file=sys.stderr)
                break
            x = drawn(built.sampler, built.denoiser.given(**label))
            spent = f" ({built.sampler.calls(0)} calls)" if adaptive else ""
            row.append(cell(w2(x, real)) + spent)
        if row:
            print(
                f"| `{name}` | " + " | ".join(row) + " |" * (1 + len(CALLS) - len(row))
            )


if __name__ == "__main__":
    main(sys.argv[1])
