"""Flows, couplings and laws of the noise on points of the plane: W2, straightness.

    python scripts/quality/fields.py FOLDER > tables.md

Trains one run per row and data set with the same network, one after another, 3,000
steps each (2,000 of the idempotent net, which takes three passes a step), and measures
each by `dcli eval metric=w2` and by the seconds that the processor worked for its
training. What lies in FOLDER already is not trained again. W2 is the exact one, between
2,000 samples and 2,000 data.

Straightness is S = int E|(x_1 - x_0) - dx_t/dt|^2 dt of Euler's path in 100 steps, for
2,000 samples; 0 is a straight line at even speed (Liu et al. 2023,
arXiv:2209.03003).
"""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from samplers import w2

from diffusion_cli import assemble, checkpoint
from diffusion_cli.rebuild import rebuild
from diffusion_cli.rng import Rng

PLANE = (
    "network=mlp network.width=128 trainer.batch=256 trainer.steps=3000 "
    "trainer.warmup=100 trainer.decay=cosine trainer.ema=[100] trainer.ema_ramp=0.1 "
    "optimizer.lr=2e-3 trainer.workers=0 every.preview=0 every.log=1000 device=cpu"
)
SCALE = "parametrisation.data_std=0.9 objective.weight.data_std=0.9"
ROWS = {
    "flow": "process=flow",
    "flow, OT": "process=flow coupling=minibatch_ot",
    "pfgm": "process=pfgm objective.reference=512",
    "pfgmpp, D = 8": f"process=pfgmpp process.D=8 {SCALE}",
    "radial, tanh": f"process=radial {SCALE}",
    "radial, ball": f"process=radial process.law.name=ball {SCALE}",
    "radial, exponential": f"process=radial process.law.name=exponential {SCALE}",
    "radial, steepening": f"process=radial process.law.name=steepening {SCALE}",
    "idempotent": "process=idempotent optimizer=adam optimizer.lr=1e-3 "
    "optimizer.betas=[0.5,0.999] trainer.decay=constant trainer.steps=2000",
}
SHAPES = ("eight_gaussians", "swiss_roll")
BOTH_ENDS = (
    "dataset=toy2d dataset.shape=moons process=radial process.law.name=data "
    "+process.law.dataset.name=toy2d +process.law.dataset.shape=checkerboard "
    "process.schedule=straight parametrisation=velocity objective=velocity "
    "sampler=euler"
)
CALLS = (1, 2, 4, 8)


def dcli(words: str) -> str:
    """A command that has to succeed; what it printed."""
    command = [sys.executable, "-m", "diffusion_cli", *words.split()]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def train(run: Path, words: str) -> Path:
    """A run that is there; the processor's seconds that it took in `seconds.json`."""
    took = run / "seconds.json"
    if not took.exists():
        before = worked()
        dcli(f"train {PLANE} {words} out={run}")
        took.write_text(json.dumps(worked() - before))
    return run


def worked() -> float:
    """Seconds that the processor has worked for the commands so far."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def measured(run: Path, more: str = "") -> tuple[float, float]:
    """W2 of the samples, and of as many other data."""
    told = dcli(f"eval ckpt={run} metric=w2 n=2000 {more}")
    found = dict(re.findall(r"^(w2\w*)\s+([\d.e-]+)", told, re.MULTILINE))
    return float(found["w2"]), float(found["w2_floor"])


def real(first: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Twice 2,000 data of a run."""
    config = checkpoint.load(first).config
    data = assemble.dataset(config)
    data.prepare()
    rows = torch.arange(4000) + 50_000
    return data.batch(rows, Rng(0, rows))[0].split(2000)  # type: ignore[return-value]


def drawn_by(run: Path, calls: int) -> torch.Tensor:
    """2,000 samples from noise that no reflow has seen."""
    out = run / "calls" / str(calls)
    dcli(f"sample ckpt={run} nfe={calls} n=2000 batch=2000 seed=5 format=npz out={out}")
    with np.load(out / "samples.npz") as file:
        return torch.from_numpy(file["samples"])


def straightness(run: Path) -> float:
    """S of Euler's path."""
    euler = {"name": "euler", "steps": 100, "grid": {"name": "uniform"}}
    built = rebuild(checkpoint.load(run), sampler=euler)
    rng = Rng(0, torch.arange(2000), 0).child("straightness")
    x = built.model.process.prior((2000, 2), rng)
    with torch.no_grad():
        path = torch.stack([x, *built.sampler.trajectory(built.denoiser, x, rng)])
    speed = (path[1:] - path[:-1]) * 100
    return float((speed - (path[-1] - path[0])).square().sum(-1).mean())


def table(head: list[str], rows: list[list[str]]) -> None:
    """Markdown."""
    for line in (head, ["---"] * len(head), *rows):
        print(f"| {' | '.join(line)} |", flush=True)
    print()


def main(home: Path) -> None:
    home.mkdir(parents=True, exist_ok=True)
    lines: dict[str, list[str]] = {row: [row] for row in ROWS}
    floors = []
    for shape in SHAPES:
        for row, words in ROWS.items():
            run = home / re.sub(r"\W+", "-", f"{row} {shape}")
            train(run, f"dataset=toy2d dataset.shape={shape} {words}")
            found, floor = measured(run)
            took = json.loads((run / "seconds.json").read_text())
            lines[row] += [f"{found:.3f}", f"{found / floor:.2f}", f"{took:.0f}"]
        floors += [f"{floor:.3f}", "1", ""]
    head = [what for shape in SHAPES for what in (shape, "/ floor", "s")]
    table(["row", *head], [["floor", *floors], *lines.values()])

    both, floor = measured(train(home / "both-ends", BOTH_ENDS), "nfe=50")
    print(f"moons from a checkerboard: W2 {both:.3f}, floor {floor:.3f}\n")

    first = home / "flow-eight_gaussians"
    drawn = home / "drawn"
    dcli(
        f"sample ckpt={first} sampler=heun steps=50 n=20000 batch=2000 format=npz "
        f"out={drawn}"
    )
    again = f"dataset=pairs dataset.path={drawn} process=flow coupling=pairs"
    runs = {
        "flow": first,
        "flow, OT": home / "flow-OT-eight_gaussians",
        "flow, then reflow": train(home / "reflow", f"{again} init={first}"),
    }
    data, other = real(first)
    rows = [["floor", *[f"{w2(data, other):.3f}"] * len(CALLS), "0"]]
    for row, run in runs.items():
        found = [w2(drawn_by(run, n), data) for n in CALLS]
        rows.append([row, *(f"{x:.3f}" for x in (*found, straightness(run)))])
    table(["row", *(f"{n} calls" for n in CALLS), "S"], rows)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
