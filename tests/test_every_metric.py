"""Every metric of the registry, from the command line to the lines it leaves."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
from conftest import Dcli

from diffusion_cli import classifier
from diffusion_cli.cli import main
from diffusion_cli.metrics import metrics
from diffusion_cli.processes.tokens import Tokens

BRIEF = "trainer.steps=2 trainer.batch=8 trainer.workers=0 every.preview=0".split()
MODELS = {
    "digits": "dataset=digits process=edm network=mlp network.width=8",
    "tokens": "dataset=markov process=mask network=token_transformer_tiny",
}
OWN = {  # what makes a metric quick; others are measured as they come
    "likelihood": ["n=4", "metric.rtol=0.1", "metric.atol=0.1"],
    "elbo": ["n=4"],
    "w2_bound": ["n=8", "metric.times=3"],
    "nfe_curve": [
        *("n=16", "metric.of.name=sliced_w2"),
        *("metric.samplers=[euler,heun,pc]", "metric.grids=[uniform,rho]"),
        "metric.calls=[1,4,5]",
    ],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of images and one of tokens."""
    folder = tmp_path_factory.mktemp("runs")
    here = Path.cwd()
    os.chdir(folder)
    try:
        for name, words in MODELS.items():
            assert main(["train", *words.split(), *BRIEF, f"out={name}"]) == 0
    finally:
        os.chdir(here)
    return folder


@pytest.mark.parametrize("name", metrics.names())
def test_a_metric_measures_and_repeats(
    name: str, runs: Path, dcli: Dcli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classifier, "STEPS", 2)
    which = "tokens" if metrics[name].needs is Tokens else "digits"
    own = OWN.get(name, ["n=16"])
    steps = [] if name == "nfe_curve" else ["steps=2"]
    words = (
        *("eval", f"ckpt={runs / which}", f"metric={name}", *own, *steps),
        *(f"cache={runs / 'cache'}", "features=classifier", "batch=16", "json=true"),
    )
    first = dcli(*words)
    assert first.code == 0, first.err
    (values,) = json.loads(first.out).values()
    assert values and all(math.isfinite(value) for value in values.values())
    assert dcli(*words).out == first.out
    lines = [
        json.loads(line)
        for path in (runs / which).glob("derived/*/metrics.jsonl")
        for line in path.read_text().splitlines()
    ]
    own_lines = [line for line in lines if line["metric"]["name"] == name]
    assert len(own_lines) == 2 and own_lines[0] == own_lines[1]
    assert own_lines[0]["values"] == values


def test_a_curve_over_calls(runs: Path, dcli: Dcli) -> None:
    words = (
        *("eval", f"ckpt={runs / 'digits'}", "metric=nfe_curve", *OWN["nfe_curve"]),
        *(f"cache={runs / 'cache'}", "batch=16"),
    )
    outcome = dcli(*words)
    assert outcome.code == 0, outcome.err
    (table,) = (runs / "digits").glob("derived/*/nfe_curve-*.csv")
    head, *rows = [line.split(",") for line in table.read_text().splitlines()]
    assert head == ["sampler", "calls", "sliced_w2", "spread", "floor", "pareto"]
    points = {(row[0], float(row[1])) for row in rows}
    assert {("euler uniform", 4.0), ("heun rho", 5.0)} <= points
    assert ("heun uniform", 1.0) in points and ("heun uniform", 3.0) in points
    assert table.with_suffix(".png").read_bytes()[1:4] == b"PNG"
    assert "Pareto front: " in outcome.err
    assert "left out: pc uniform at 1 calls" in outcome.err
