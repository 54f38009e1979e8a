"""Measuring by several processes: each does its share, and waits for the others."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from pathlib import Path

import pytest
from team import team
from tiny import place, tiny

from diffusion_cli import classifier
from diffusion_cli.commands import train
from diffusion_cli.gallery import Gallery
from diffusion_cli.metrics import seen
from diffusion_cli.metrics.seen import Seen

__all__ = ["place"]  # a fixture
pytestmark = pytest.mark.usefixtures("place")

LABELLED = {"name": "toy2d", "size": 100, "shape": "moons", "labels": True}
MEASURED = {
    "dataset": LABELLED,
    "network": {"name": "mlp", "width": 16, "depth": 1, "dropout": 0.0},
    "metric": [{"name": "fid", "n": 40}],
    "every": {"eval": 12, "save": 0, "preview": 0},
}


def trained(name: str, size: int) -> dict[str, float]:
    """The numbers of a run that measures itself, by so many processes."""
    batch = {"batch": 10, "cache": f"cache-{name}"}
    values = tiny(
        out=name,
        features={"name": "classifier"},
        evaluation=batch,
        trainer={"precision": "fp32"},  # bf16 would round each share in its own way
        **MEASURED,
    )
    assert team(size, lambda: train.run(values, []), DCLI_PATIENCE="2") == [0] * size
    lines = (Path(name) / "metrics.jsonl").read_text().splitlines()
    (found,) = [line for line in map(json.loads, lines) if "measured" in line]
    return {k: v for k, v in found.items() if k.startswith("fid")}


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """A classifier of two steps, and small blocks."""
    monkeypatch.setattr(classifier, "STEPS", 2)
    monkeypatch.setattr(seen, "BLOCK", 10)


def test_each_draws_and_looks_at_its_share(
    brief: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = trained("alone", 1)
    keep, block = Gallery.keep, Seen._block

    def note(what: str) -> None:
        with Path("done").open("a") as file:  # whole lines, whoever writes
            file.write(f"{what} {os.environ['RANK']}\n")

    def drawn(self, chunk, x):
        note("chunk")
        keep(self, chunk, x)

    def looked(self, x, digest):
        note("block")
        return block(self, x, digest)

    monkeypatch.setattr(Gallery, "keep", drawn)
    monkeypatch.setattr(Seen, "_block", looked)
    assert trained("shared", 2) == pytest.approx(alone, rel=1e-4)
    done = Counter(Path("done").read_text().splitlines())
    # 40 samples in chunks of 10; blocks of 10: 100 data, 40 samples, both of the floor
    assert done["chunk 0"] == done["chunk 1"] == 2
    assert done["block 0"] == done["block 1"] > 0


@pytest.mark.parametrize("slow", ["keep", "_block"])
def test_a_long_share_is_no_rank_that_hangs(
    slow: str, brief: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Longer than a step of the training may take."""
    home = {"keep": Gallery, "_block": Seen}[slow]
    own = getattr(home, slow)

    def late(self, *args):
        if os.environ["RANK"] == "0" and not Path("slept").exists():
            Path("slept").touch()
            time.sleep(3)
        return own(self, *args)

    monkeypatch.setattr(home, slow, late)
    assert trained("run", 2) and Path("slept").exists()
