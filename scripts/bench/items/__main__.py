"""One item in a process of its own: a JSON line for each row, as soon as it is known.

python scripts/bench/items ITEM SECONDS PICTURE [small]
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import sys
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])

MARGIN = 2  # seconds before the process is killed
GRACE = 10  # seconds until it ends by itself, should nobody be left to kill it


def main(name: str, limit: str, picture: str, *small: str) -> int:
    """Measure; 1 if it ended early, which a last row tells."""
    begun = time.monotonic()
    faulthandler.dump_traceback_later(float(limit) + GRACE, exit=True)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what packages print must not come between
    import chip
    import torch

    device = torch.device("cpu" if small else "cuda:0")
    until = begun + float(limit) - MARGIN
    bench = chip.Bench(device, bool(small), until, Path(picture))
    try:
        for row in importlib.import_module(f"items.{name}").measure(bench):
            print(json.dumps(row), file=answers)
    except Exception as problem:
        sys.excepthook(type(problem), problem, problem.__traceback__)
        print(json.dumps({"side": "", "fault": chip.reason(problem)}), file=answers)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
