"""One side of a comparison, in the interpreter of its own package.

It makes ready, warms up, says so, and then does one round for every line it is sent.

    python worker.py THREADS WARM MODULE FUNCTION '{"argument": 1}'
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time


def main(threads: str, warm: str, module: str, function: str, arguments: str) -> None:
    """Serve rounds until the sender closes the line.

    `MODULE.FUNCTION(**arguments)` returns what is timed: a function that returns None,
    or numbers of its own, `seconds` among them where only a part of it counts.
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what packages print must not come between
    import torch

    torch.set_num_threads(int(threads))
    prepared = getattr(importlib.import_module(module), function)
    once = prepared(**json.loads(arguments))
    for _ in range(int(warm)):
        once()
    print(json.dumps({"torch": torch.__version__}), file=answers)
    for _ in sys.stdin:
        begun, worked = time.perf_counter(), time.process_time()
        numbers = once() or {}
        took = {
            "seconds": time.perf_counter() - begun,
            "worked": time.process_time() - worked,
        }
        print(json.dumps(took | numbers), file=answers)


if __name__ == "__main__":
    main(*sys.argv[1:])
