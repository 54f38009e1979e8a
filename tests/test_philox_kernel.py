"""The kernel for random words on a GPU: interpreted, and compiled for one."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    find_spec("triton") is None, reason="this torch brings no Triton"
)

SAME = """
import torch
from diffusion_cli import philox_kernel, rng

every = torch.tensor([0, 9, 1, 9, 5, 9, 2**32 - 1, 9, 2**32 + 3, 9, -1, 9])
rows = every[::2]  # with strides, and with more bits than a counter has
for seed in (0, 1, 7, 2**31, 2**63 - 1):
    for step, stream in ((0, 0), (1, 1), (2**31 + 5, 2**32 - 1), (16, 99)):
        asked = (rows, 67, step, stream, seed)
        assert torch.equal(philox_kernel.words(*asked), rng._words(*asked)), asked
assert philox_kernel.words(rows[:0], 3, 0, 0, 0).shape == (0, 3, 4)
"""

COMPILED = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from diffusion_cli.philox_kernel import _words

names = ("blocks", "total", "step", "stream", "seed")
for kind in ("i32", "i64"):
    kinds = {"out": "*i64", "rows": "*i64", **dict.fromkeys(names, kind)}
    kinds["BLOCK"] = "constexpr"
    source = ASTSource(fn=_words, signature=kinds, constexprs={"BLOCK": 256})
    assert triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]
"""


@pytest.mark.parametrize(("code", "interpreted"), [(SAME, "1"), (COMPILED, "0")])
def test_it_gives_the_same_words(code: str, interpreted: str, tmp_path: Path) -> None:
    told = {"TRITON_INTERPRET": interpreted, "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | told, capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()
