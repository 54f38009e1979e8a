"""The GPU benchmark: nine minutes, the most valuable first, each row as it is known.

python scripts/bench/gpu.py --out gpu.jsonl --docs   # on a machine with a CUDA device
python scripts/bench/gpu.py --small                  # that it runs, on a CPU
python scripts/bench/gpu.py training --total 200     # one item
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator
from contextlib import closing, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TextIO

sys.path.insert(0, str(Path(__file__).parent))

import gpu_page
from peers import HOME, PEERS, ROOT

Row = dict[str, Any]


class Item(NamedTuple):
    """A file of `items/`, and the seconds that it may take, on a GPU and in small."""

    name: str
    seconds: int
    small: int


# what is left of the nine minutes is the last one's; --total=870 gives it five
ITEMS = {
    item.name: item
    for item in (
        Item("ceilings", 30, 30),
        Item("training", 190, 60),
        Item("tail", 30, 40),
        Item("norms", 20, 40),
        Item("sampling", 80, 60),
        Item("data", 30, 40),
        Item("stalls", 40, 60),
        Item("sanity", 90, 60),
        Item("real", 345, 60),
    )
}
TOTAL = 540
LEAST = 8  # seconds: less is not enough to import torch and begin


def main(argv: list[str] | None = None) -> int:
    """Measure what is asked for; 1 if an item ended early."""
    asked = arguments(argv)
    heed()
    small = asked.small or not cuda()
    if small and not asked.small:
        print("no CUDA device: --small, whose numbers mean nothing", file=sys.stderr)
    until = time.monotonic() + asked.total
    rows: list[Row] = []
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    with asked.out.open("w") as out:
        tell({"item": "about"} | about(small), rows, out)
        for name in asked.items:
            with closing(measured(ITEMS[name], small, until, asked.out)) as found:
                for row in found:
                    tell({"item": name} | row, rows, out)
    print(f"{asked.out}: {len(rows)} rows", file=sys.stderr)
    if asked.docs and small:
        print(f"{gpu_page.PAGE.name}: left as it is", file=sys.stderr)
    elif asked.docs:
        gpu_page.tell(rows)
    return int(any(row.get("side") == "" for row in rows))


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """What is asked for; items in their order of worth."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("items", nargs="*", metavar="ITEM", help=", ".join(ITEMS))
    parser.add_argument("--small", action="store_true", help="on a CPU, a minute each")
    parser.add_argument("--total", type=seconds, default=TOTAL, help="seconds for all")
    parser.add_argument(
        "--out", type=Path, default=HOME / "gpu.jsonl", help="a file for the rows"
    )
    parser.add_argument(
        "--docs", action="store_true", help="write the tables of docs/benchmarks.md"
    )
    asked = parser.parse_args(argv)
    if wrong := set(asked.items) - set(ITEMS):
        parser.error(f"no item {', '.join(wrong)}; there are {', '.join(ITEMS)}")
    if asked.docs and asked.items:
        parser.error("--docs writes the tables of all items: leave out ITEM or --docs")
    if asked.out.is_dir():
        parser.error(f"--out wants a file, and {asked.out} is a folder")
    asked.items = [name for name in ITEMS if name in asked.items or not asked.items]
    return asked


def seconds(text: str) -> float:
    """A time, of which something is left to measure in."""
    with suppress(ValueError):
        found = float(text)
        if 0 < found < math.inf:
            return found
    raise argparse.ArgumentTypeError(f"wants seconds above 0, not {text}")


def heed() -> None:
    """Let a signal to end raise, so that the item that runs ends too."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
            signal.signal(number, leave)


def leave(number: int, frame: object) -> NoReturn:
    """Exit as a shell tells of a signal."""
    sys.exit(128 + number)


def tell(row: Row, rows: list[Row], out: TextIO) -> None:
    """Keep a row on the disk, at once, and show it."""
    rows.append(row)
    line = json.dumps(gpu_page.rounded(row))
    for stream in (out, sys.stdout):
        print(line, file=stream, flush=True)


def measured(item: Item, small: bool, until: float, out: Path) -> Generator[Row]:
    """The rows of an item, from a process that ends with its time."""
    limit = min(item.small if small else item.seconds, until - time.monotonic())
    if limit < LEAST:
        yield {"side": "", "fault": "no time left"}
        return
    words = [item.name, str(limit), str(out.with_suffix(".png"))]
    words = [python(), str(ROOT / "scripts" / "bench" / "items"), *words]
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    with tempfile.TemporaryFile("w+") as told:
        process = subprocess.Popen(
            [*words, "small"] if small else words,
            stdout=subprocess.PIPE,
            stderr=told,
            text=True,
            errors="replace",
            start_new_session=True,  # it ends with all that it has started
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        )
        assert process.stdout is not None
        over = threading.Timer(limit, end, (process.pid,))
        over.start()
        faulty = False
        try:
            for line in process.stdout:
                row = read(line)
                faulty = faulty or (row is not None and row["side"] == "")
                yield row or {"side": "", "fault": f"not a row: {line.strip()[:60]}"}
            code = process.wait()
        finally:
            late = not over.is_alive()
            over.cancel()
            if process.poll() is None:  # whoever reads the rows has given up
                end(process.pid)
                process.wait()
        if late:
            yield {"side": "", "fault": f"its {limit:.0f} s are over"}
        elif code and not faulty:
            told.seek(0)
            last = [f"exit {code}", *told.read().strip().splitlines()][-1]
            yield {"side": "", "fault": last}


def read(line: str) -> Row | None:
    """A row as an item writes it; None if it is none."""
    with suppress(ValueError):
        row = json.loads(line)
        if isinstance(row, dict) and isinstance(row.get("side"), str):
            return row
    return None


def end(group: int) -> None:
    """End a process with all that it has started, if one of them is still there."""
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def cuda() -> bool:
    """Whether torch sees a CUDA device."""
    import torch

    return torch.cuda.is_available()


def python() -> str:
    """An interpreter with diffusers: this one, its own environment, else this one."""
    peer = PEERS["diffusers"]
    if find_spec("diffusers") or not peer.note.exists():
        return sys.executable
    return (
        peer.python
        if "version" in json.loads(peer.note.read_text())
        else sys.executable
    )


def about(small: bool) -> Row:
    """Machine, versions and command."""
    import torch
    import torchvision
    from report import commit

    told = "from importlib.metadata import version; print(version('diffusers'))"
    found = subprocess.run([python(), "-c", told], capture_output=True, text=True)
    device = f"CPU, {torch.get_num_threads()} threads"
    if not small:
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        device = f"{torch.cuda.get_device_name()}, {memory:.0f} GiB"
    return {
        "machine": f"{device}; {os.cpu_count()} cores",
        "when": time.strftime("%Y-%m-%d"),
        "command": shlex.join(["python", "scripts/bench/gpu.py", *sys.argv[1:]]),
        "small": small,
        "dcli": commit(),
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "diffusers": found.stdout.strip() or "not installed",
    }


if __name__ == "__main__":
    sys.exit(main())
