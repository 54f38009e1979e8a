"""Start-up: what a user waits for before anything is computed."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from duel import Command, Setting, python
from goals import Result, contest, row

DCLI = [sys.executable, "-m", "diffusion_cli"]


@row("startup")
def startup(setting: Setting) -> list[Result]:
    """G6 and G7."""
    return [*words(setting), first_step(setting)]


def words(setting: Setting) -> list[Result]:
    """What needs no torch, beside importing diffusers."""
    imported = "from diffusers import DDIMScheduler, UNet2DModel"
    peer = Command("import diffusers", [python("diffusers"), "-c", imported], setting)
    asked = {
        "--help": (Command("dcli --help", [*DCLI, "--help"], setting), 0.25),
        "--cfg job": (
            Command("dcli train --cfg job", [*DCLI, "train", "--cfg", "job"], setting),
            0.6,
        ),
        "error": (
            Command(
                "dcli train trainer.stepz=3",
                [*DCLI, "train", "trainer.stepz=3"],
                setting,
                code=2,
            ),
            0.6,
        ),
    }
    results = []
    for name, (side, most) in asked.items():
        result, _ = contest("G6", f"Start-up: {name}", [side, peer], setting)
        seconds = result.sides[side.name]["worked"]["median"]
        ratio = result.ratios[peer.name]["median"]
        result.measured = f"`{name}` {seconds:.2f} s, 1/{ratio:.1f} of the import"
        result.met = seconds <= most and ratio >= 15
        results.append(result)
    return results


def first_step(setting: Setting) -> Result:
    """A run of points in the plane, ended after its first step."""
    with tempfile.TemporaryDirectory() as folder:
        run = ["exp=toy2d", "fresh=true", f"out={Path(folder) / 'run'}"]
        words, ended = [*DCLI, "train", *run], {"DCLI_FAULT": "step.ema@1:exit:0"}
        sides = [
            Command("dcli train, to its first step", words, setting, told=ended),
            Command("import torch", [sys.executable, "-c", "import torch"], setting),
        ]
        result, _ = contest("G7", "Start-up: training", sides, setting)
    ratio = 1 / result.ratios["import torch"]["median"]
    result.measured = f"{ratio:.2f}x `import torch`, to the end of the first step"
    result.met = ratio <= 1.15
    return result
