"""From many image files to one table, with an account of what was met."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from diffusion_cli.datasets.decoding import Decoder, Size
from diffusion_cli.datasets.sources import Entry, Source
from diffusion_cli.datasets.tables import Table
from diffusion_cli.errors import DataError
from diffusion_cli.paths import shown

BLOCK = 2**26  # bytes decoded between two writes
THREADS = 16
HEAVY = 2**14  # bytes; decoding lighter files holds the interpreter's lock all along
FIRST = 5  # broken files, or sizes, that a message names


@dataclass
class Report:
    """What decoding met; it stays beside the cached images."""

    bad: list[str] = field(default_factory=list)  # `name: reason`
    modes: dict[str, int] = field(default_factory=dict)


def decode(
    source: Source,
    entries: Sequence[Entry],
    decoder: Decoder,
    classes: Sequence[int] | None,
    report: Report,
) -> Iterator[Table]:
    """Blocks of decoded images in the order of `entries`, without the broken ones.

    All files are looked at before an image of another size is refused, so that the
    message can say which sizes there are.
    """
    modes, sizes, misfits = Counter[str](), Counter[Size](), 0
    heavy = sum(entry.size for entry in entries) > HEAVY * len(entries)
    threads = min(THREADS, os.cpu_count() or 1) if heavy else 1
    numel = math.prod(decoder.size or (1,)) * decoder.channels
    block = min(1024, max(threads, BLOCK // numel))
    bar = tqdm(total=len(entries), desc="decoding", unit="img", disable=None)
    with ThreadPoolExecutor(threads) as pool, bar:
        for start in range(0, len(entries), block):
            part = entries[start : start + block]
            pixels, labels = [], []
            results = pool.map(lambda entry: decoder(source, entry), part)
            for place, found in enumerate(results, start):
                if found.fault:
                    report.bad.append(f"{shown(found.name)}: {shown(found.fault)}")
                    continue
                modes[found.mode] += 1
                sizes[found.size] += 1
                misfits += found.pixels is None
                if found.pixels is not None:
                    pixels.append(found.pixels)
                    labels.append(classes[place] if classes else 0)
            bar.update(len(part))
            if pixels:
                yield Table(np.stack(pixels), np.array(labels))
    if misfits:
        raise _misfit(source.path, decoder, sizes, misfits)
    if not sizes:
        raise refusal(report, len(entries), source.path)
    report.modes = dict(sorted(modes.items()))


def refusal(report: Report, total: int, path: Path) -> DataError:
    """Too many broken files: how many, and the first of them."""
    lines = [f"{path}: {len(report.bad)} of {total} images cannot be decoded"]
    lines += [f"  {line}" for line in report.bad[:FIRST]]
    if len(report.bad) > FIRST:
        lines.append(f"  ... and {len(report.bad) - FIRST} more")
    hint = f"repair them, or dataset.bad=skip dataset.bad_limit={len(report.bad)}"
    if len(report.bad) == total:
        hint = "dataset.path=<folder or .zip>"
    return DataError("\n".join(lines), hint, "DATA-BAD")


def _misfit(
    path: Path, decoder: Decoder, sizes: Counter[Size], misfits: int
) -> DataError:
    width, height = decoder.size or (0, 0)
    reason = "are smaller than" if decoder.fit == "crop" else "do not have the size"
    common = [f"{w}x{h} ({n})" for (w, h), n in sizes.most_common(FIRST)]
    if len(sizes) > FIRST:
        common.append(f"{len(sizes) - FIRST} other sizes")
    message = (
        f"{path}: {misfits} of {sizes.total()} images {reason} {width}x{height}: "
        f"there are {', '.join(common)}"
    )
    hint = f"dataset.size={min(width, height)} dataset.fit=resize"
    return DataError(message, hint, "DATA-SIZE")
