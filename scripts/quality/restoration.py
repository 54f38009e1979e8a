"""How far do cold processes restore digits that they never saw?

Trains one model for each degradation on nine of ten digits, without labels, and lets
`dcli sample restore=` undo the degradation of the held-out ones. Errors are root mean
squares over pixels in [-1, 1]: of the degraded digits, of those restored step by step,
and of a single belief (`steps=1`).

    python scripts/quality/restoration.py FOLDER
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch

from diffusion_cli.datasets.digits import Digits
from diffusion_cli.rng import Rng

RUNS = {
    "blur": ["process=cold_blur"],
    "pixelate": ["process=cold_pixelate"],
    "mask": ["process=cold_mask"],
    "mask_anywhere": ["process=cold_mask", "process.operator.centre=random"],
    "fade": ["process=cold_fade"],
}
TRAINED = """dataset=digits dataset.split=train dataset.labels=false trainer.steps=300
    trainer.batch=64 trainer.warmup=30 trainer.decay=cosine trainer.ema=[50]
    trainer.ema_ramp=0.1 optimizer.lr=2e-3 every.preview=0 trainer.workers=0""".split()
SEVERITIES = (0.3, 0.5, 0.7)


def dcli(*words: str) -> str:
    """The last line that the command prints."""
    command = [sys.executable, "-m", "diffusion_cli", *words]
    done = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE)
    return done.stdout.strip()


def held_out(folder: Path) -> None:
    """The test digits as PNG files."""
    data = Digits(labels=False, split="test")
    data.prepare()
    index = torch.arange(len(data))
    x0, _ = data.batch(index, Rng(0, index))
    folder.mkdir(parents=True, exist_ok=True)
    data.save(x0, data.spec, folder, 0)


def main(folder: Path) -> None:
    """Print a row for each degradation and severity."""
    held_out(folder / "digits")
    print("| Degradation | Severity | Degraded | Restored | In one step |")
    print("|---|---|---|---|---|")
    for name, chosen in RUNS.items():
        run = folder / name
        dcli("train", *chosen, *TRAINED, f"out={run}")
        for severity in SEVERITIES:
            words = (f"restore={folder / 'digits'}", f"severity={severity}")
            errors = []
            for steps in ([], ["steps=1"]):
                drawn = dcli("sample", f"ckpt={run}", *words, *steps)
                about = json.loads((Path(drawn) / "about.json").read_text())
                errors.append(about["differences"])
            cells = errors[0]["spoilt"], errors[0]["drawn"], errors[1]["drawn"]
            row = " | ".join(f"{error:.3f}" for error in cells)
            print(f"| {name} | {severity} | {row} |", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
