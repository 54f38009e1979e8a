"""Bits per character of n-gram models, to set beside `dcli eval metric=nelbo`.

Counts on the first nine tenths of a text, as `dataset=text` cuts it, Witten-Bell
smoothing down to uniform characters, measured on the rest. Unlike the model, whose
windows start without context, an n-gram sees what stands before.

    python scripts/quality/ngrams.py FILE 1 5
"""

from __future__ import annotations

import math
import sys
from collections import Counter, defaultdict
from pathlib import Path


def bits(train: str, test: str, order: int, size: int) -> float:
    """Bits per character of `test` under the model of this order."""
    counts: list[dict[str, Counter[str]]] = []
    for back in range(order):
        seen: dict[str, Counter[str]] = defaultdict(Counter)
        for i in range(back, len(train)):
            seen[train[i - back : i]][train[i]] += 1
        counts.append(seen)
    total = 0.0
    for i, character in enumerate(test):
        p = 1 / size
        for back in range(min(order, i + 1)):
            after = counts[back].get(test[i - back : i])
            if after is None:
                break
            p = (after[character] + len(after) * p) / (after.total() + len(after))
        total -= math.log2(p)
    return total / len(test)


def main(path: Path, orders: list[int]) -> None:
    """Print a line for each order."""
    text = path.read_bytes().decode("utf-8")
    cut = round(len(text) * 0.9)
    for order in orders:
        found = bits(text[:cut], text[cut:], order, len(set(text)))
        print(f"{order}-gram  {found:.3f} bits per character")


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(word) for word in sys.argv[2:]])
