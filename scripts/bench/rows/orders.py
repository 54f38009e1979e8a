"""Whether samplers are what they are called, by the tests that CI runs."""

from __future__ import annotations

import re
import subprocess
import sys

from duel import Fault, Setting, environment
from goals import Result, row
from peers import ROOT

TESTS = ("convergence", "samplers", "oracles")
FAILED = 1  # pytest's exit code; above it the tests did not run


@row("orders")
def orders(setting: Setting) -> list[Result]:
    """G12: orders of convergence, limits, and laws that are known."""
    names = TESTS[1:] if setting.small else TESTS
    words = [sys.executable, "-m", "pytest", *(f"tests/test_{n}.py" for n in names)]
    told = environment(setting.threads)
    done = subprocess.run(words, cwd=ROOT, env=told, capture_output=True, text=True)
    if done.returncode > FAILED:
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise Fault(f"pytest: {[f'exit {done.returncode}', *lines][-1]}")
    return [verdict(done.stdout.strip().splitlines()[-1])]


def verdict(last: str) -> Result:
    """What pytest's last line says."""
    found = {
        word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|error)", last)
    }
    failed = found.get("failed", 0) + found.get("error", 0)
    passed = found.get("passed", 0)
    told = f"{passed} tests pass, {failed} fail"
    return Result("G12", told, passed > 0 and failed == 0, "")
