"""Are sampled digits what their label says, and are they new?

A support vector machine that never saw the model, trained on the real digits, reads
the samples; and each sample's distance to its nearest real digit is set beside the
distances between real digits.

    dcli sample ckpt=runs/digits-... steps=50 n=1000 format=npz
    python scripts/quality/digits.py runs/digits-.../samples/heun-50-...
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import cross_val_score
from sklearn.svm import SVC


def nearest(x: np.ndarray, others: np.ndarray, itself: bool = False) -> np.ndarray:
    """The distance of each row of `x` to the nearest of `others`, in grey levels."""
    square = (x**2).sum(1)[:, None] + (others**2).sum(1) - 2 * x @ others.T
    if itself:
        np.fill_diagonal(square, np.inf)
    return np.sqrt(np.maximum(square, 0).min(1))


def main(folder: Path) -> None:
    """Print agreement with the labels, and quantiles of the distances."""
    real, truth = load_digits(return_X_y=True)
    with np.load(folder / "samples.npz") as file:
        levels = (file["samples"].clip(-1, 1) + 1) * 8
        labels = file["labels"]
    samples = levels.round().reshape(len(levels), -1)
    machine = SVC(gamma="scale").fit(real, truth)
    right = machine.predict(samples) == labels
    cross = cross_val_score(SVC(gamma="scale"), real, truth, cv=5).mean()
    print(f"samples read as their label   {right.mean():.1%} of {len(right)}")
    print(f"real digits, cross-validated  {cross:.1%} of {len(real)}")
    rows = {
        "sample to nearest real digit": nearest(samples, real),
        "real to nearest other digit": nearest(real, real, itself=True),
        "sample to nearest sample": nearest(samples, samples, itself=True),
    }
    print(f"{'distance, grey levels of 16':30}{'5 %':>8}{'50 %':>8}{'95 %':>8}")
    for name, distances in rows.items():
        low, middle, high = np.quantile(distances, [0.05, 0.5, 0.95])
        print(f"{name:30}{low:8.1f}{middle:8.1f}{high:8.1f}")
    copies = (rows["sample to nearest real digit"] == 0).sum()
    print(f"exact copies of a real digit   {copies}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
