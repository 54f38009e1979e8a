"""Philox-4x32-10 on a GPU: one kernel for all the words of a draw.

The same integers as `rng.philox`, which takes a hundred small kernels for them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 256


@triton.jit(do_not_specialize=["blocks", "total", "step", "stream", "seed"])  # type: ignore[untyped-decorator]
def _words(
    out: tl.tensor,
    rows: tl.tensor,
    blocks: tl.tensor,
    total: tl.tensor,
    step: tl.tensor,
    stream: tl.tensor,
    seed: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """Four words for every element and sample, side by side; (samples, elements, 4)."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    held = place < total
    row = tl.load(rows + place // blocks, mask=held, other=0).to(tl.uint32)
    element = (place % blocks).to(tl.uint32)
    third = tl.zeros_like(element) + step.to(tl.uint32)
    fourth = tl.zeros_like(element) + stream.to(tl.uint32)
    a, b, c, d = tl.philox(seed, element, row, third, fourth)
    tl.store(out + 4 * place, a.to(tl.int64), mask=held)
    tl.store(out + 4 * place + 1, b.to(tl.int64), mask=held)
    tl.store(out + 4 * place + 2, c.to(tl.int64), mask=held)
    tl.store(out + 4 * place + 3, d.to(tl.int64), mask=held)


def words(rows: Tensor, blocks: int, step: int, stream: int, seed: int) -> Tensor:
    """The words of `rows` (B,), 32 bits of each; int64 (B, blocks, 4)."""
    out = torch.empty((len(rows), blocks, 4), dtype=torch.int64, device=rows.device)
    total = len(rows) * blocks
    if total:
        grid = (triton.cdiv(total, BLOCK),)
        rows = rows.contiguous()
        # Triton launches on the current device
        with torch.cuda.device_of(rows):  # type: ignore[no-untyped-call]
            _words[grid](out, rows, blocks, total, step, stream, seed, BLOCK=BLOCK)
    return out
