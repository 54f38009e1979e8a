"""Kill training with SIGKILL at random moments; rerun; compare with a run left alone.

    python scripts/faults/kill.py --moments 20 --seed 0

Every trial is `dcli train` in a process and a folder of its own. It is killed at a
moment drawn uniformly between its first step and the time at which the run left alone
ended, then the same command runs to the end. All files of the last checkpoint (weights,
averages, optimiser, state) and the metrics must equal the control's, bit for bit, and
nothing of an interrupted save may stay. Any arguments of `dcli train` after `--`
replace the default run. Exit code 1 if a trial differs.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

RUN = (
    "dataset=toy2d network.width=16 network.depth=1 network.dropout=0.1 seed=3 "
    "trainer.steps=400 trainer.batch=8 trainer.ema=[20,100] every.preview=0 "
    "every.log=7 every.save=5"
)
MACHINE = ("images_per_second", "memory_gib")  # what a metric says of the machine


def start(words: list[str], folder: Path) -> subprocess.Popen[bytes]:
    """The command, its words written to `<folder>.log`."""
    command = [sys.executable, "-m", "diffusion_cli", "train", *words, f"out={folder}"]
    with folder.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)


def began(folder: Path, process: subprocess.Popen[bytes]) -> float:
    """Wait until the run takes its first step; the moment."""
    while not (folder / "status.json").exists() and process.poll() is None:
        time.sleep(0.001)
    return time.monotonic()


def finish(words: list[str], folder: Path) -> float:
    """Run the command to its end; the seconds since its first step."""
    process = start(words, folder)
    first = began(folder, process)
    if code := process.wait():
        raise SystemExit(f"exit {code}: see {folder.with_suffix('.log')}")
    return time.monotonic() - first


def outcome(folder: Path) -> dict[str, Any]:
    """What a run amounts to: hashes of its last checkpoint, metrics, what is left."""
    places = sorted((folder / "checkpoints").iterdir())
    manifest = json.loads((places[-1] / "manifest.json").read_text())
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    metrics = [{k: v for k, v in line.items() if k not in MACHINE} for line in lines]
    hashes = {name: entry["sha256"] for name, entry in manifest["files"].items()}
    return {**hashes, "metrics": metrics, "left": [place.name for place in places]}


def trial(words: list[str], folder: Path, seconds: float) -> str:
    """Kill a run after `seconds`; where it stood."""
    process = start(words, folder)
    began(folder, process)
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    process.wait()
    names = [path.name for path in (folder / "checkpoints").glob("*")]
    return ", ".join(sorted(names)[-2:]) or "no checkpoint yet"


def main() -> int:
    """Run the control and the trials; 1 if one of them differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--moments", type=int, default=20, help="number of trials")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("words", nargs="*", help="arguments of dcli train")
    options = parser.parse_args()
    words = options.words or RUN.split()
    draw = random.Random(options.seed)
    failed = 0
    with tempfile.TemporaryDirectory() as place:
        length = finish(words, Path(place) / "control")
        control = outcome(Path(place) / "control")
        print(f"control: {length:.2f} s from the first step, {control['left'][-1]}")
        for number in range(options.moments):
            folder, seconds = Path(place) / f"trial-{number}", draw.uniform(0, length)
            stood = trial(words, folder, seconds)
            finish(words, folder)
            found = outcome(folder)
            differs = [key for key in control if found.get(key) != control[key]]
            verdict = f"differs in {', '.join(differs)}" if differs else "equal"
            print(f"{number:3d}  killed at {seconds:5.2f} s ({stood}): {verdict}")
            sys.stdout.flush()
            failed += bool(differs)
    print(f"{options.moments - failed} of {options.moments} equal the control")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
