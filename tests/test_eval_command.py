"""`dcli eval`: what is measured, on what, and where the numbers go."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import Dcli

TINY = (
    "dataset=toy2d dataset.size=300 process=ddpm network=mlp network.width=16 "
    "network.depth=1 trainer.steps=2 trainer.batch=8 every.preview=0 out=run"
).split()
PLUGIN = '''
from diffusion_cli.metrics import Metric, Result, metrics
from diffusion_cli.processes.affine import Diffusion


@metrics("moments")
class Moments(Metric):
    """Means of data and samples.

    No reference: a test.
    """

    needs = Diffusion

    def __init__(self, n: int = 10, scale: float = 1.0) -> None:
        self.n, self.scale = n, scale

    def __call__(self, subject):
        batches = list(subject.data(self.n))
        rows = [int(row) for batch in batches for row in batch.rng.rows]
        total = sum(float(batch.x0.sum()) for batch in batches)
        x = subject.samples(self.n)
        assert x.shape == (self.n, 2)
        mean = self.scale * total / len(rows)
        return Result(
            {"data": mean, "data_se": 0.25, "rows": len(rows)},
            [{"row": row} for row in sorted(rows)[:2]],
            ("told to all",),
        )


@metrics("samples")
class Samples(Moments):
    """The first coordinate of a sample.

    No reference: a test.
    """

    def __call__(self, subject):
        return Result({"first": float(subject.samples(1)[0, 0])})
'''


@pytest.fixture
def run(dcli: Dcli) -> Dcli:
    """A command line with a tiny run and two metrics of its own."""
    for name in ("moments", "samples"):
        Path("conf/metric").mkdir(parents=True, exist_ok=True)
        Path(f"conf/metric/{name}.yaml").write_text(f"name: {name}\n")
    Path("own.py").write_text(PLUGIN)
    assert dcli("train", *TINY).code == 0

    def measure(*words: str):
        own = ("--config-dir", "conf", "plugins=[own.py]", "ckpt=run", "steps=3")
        return dcli("eval", *own, *words)

    return measure


def kept() -> list[dict]:
    (path,) = Path("run/derived").glob("*-ema/metrics.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_numbers_are_printed_and_kept(run: Dcli) -> None:
    outcome = run("metric=moments")
    assert outcome.code == 0, outcome.err
    first, second = outcome.out.splitlines()
    assert first.startswith("moments.data ") and first.endswith("+- 0.25")
    assert second.split() == ["moments.rows", "10"]
    assert "moments: told to all" in outcome.err
    (line,) = kept()
    assert line["values"]["rows"] == 10 and line["metric"]["scale"] == 1
    assert line["sampler"]["steps"] == 3 and line["step"] == 2
    (csv,) = Path("run/derived").glob("*-ema/moments-*.csv")
    assert len(csv.read_text().splitlines()) == 3 and str(csv) in outcome.err


def test_several_metrics_share_samples_with_dcli_sample(run: Dcli, dcli: Dcli) -> None:
    outcome = run("metric=moments,samples", "n=7", "batch=8", "json=true", "seed=4")
    values = json.loads(outcome.out)
    assert list(values) == ["moments", "samples"] and values["moments"]["rows"] == 7
    drawn = dcli("sample", "ckpt=run", "steps=3", "n=7", "batch=8", "seed=4")
    assert "7/7 already done" in drawn.err
    assert len(list(Path("run/samples").glob("ancestral-3-*"))) == 1


def test_one_of_several_takes_keys_of_its_own(run: Dcli) -> None:
    words = ("metric=[moments,samples]", "metric.moments.scale=2", "json=true")
    both = json.loads(run(*words).out)
    one = json.loads(run("metric=moments", "json=true").out)
    assert both["moments"]["data"] == 2 * one["moments"]["data"]
    flat = json.loads(run("metric=moments", "metric.scale=2", "json=true").out)
    assert flat["moments"] == both["moments"]


def test_the_data_can_be_changed_but_not_their_shape(run: Dcli) -> None:
    own = run("metric=moments", "json=true", "n=300").out
    assert run("metric=moments", "json=true", "dataset.shape=moons", "n=300").out != own
    refused = run("metric=moments", "dataset=digits")
    assert refused.code == 2 and "dataset" in refused.err
    refused = run("metric=moments", "dataset.sahpe=moons")
    assert refused.code == 2 and "did you mean `shape`" in refused.err
    refused = run("metric=moments", "dataset.labels=true")
    assert refused.code == 2 and "dataset" in refused.err


def test_more_than_the_data_is_all_of_it(run: Dcli) -> None:
    values = json.loads(run("metric=moments", "metric.n=1000", "json=true").out)
    assert values["moments"]["rows"] == 300


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "metric: name at least one"),
        (["metric=moment"], "did you mean `moments`"),
        (["metric=moments", "metric.sclae=2"], "did you mean `scale`"),
        (["metric=moments", "n=1"], "n: must be >= 2"),
        (["metric=moments", "ckpt=none"], "there is no `none`"),
    ],
)
def test_mistakes_are_refused(run: Dcli, words: list[str], told: str) -> None:
    outcome = run(*words)
    assert outcome.code in (2, 4) and told in outcome.err and not outcome.out
    assert not Path("run/derived").exists()


def test_stacks_of_guidance(dcli: Dcli) -> None:
    assert dcli("train", *TINY, "guidance=large,clip", "guidance.clip.high=2").code == 0
    text = Path("run/config.yaml").read_text()
    assert text.index("name: large") < text.index("name: clip") and "high: 2.0" in text
    assert (
        dcli("sample", "ckpt=run", "steps=2", "n=2", "guidance=[clip,large]").code == 0
    )
    assert (
        dcli("sample", "ckpt=run", "steps=2", "n=2", "guidance.clip.low=-3").code == 0
    )
    (one, other) = Path("run/samples").glob("ancestral-2-*")
    stacks = [
        json.loads((f / "about.json").read_text())["guidance"] for f in (one, other)
    ]
    names = sorted([[node["name"] for node in stack] for stack in stacks])
    assert names == [["clip", "large"], ["large", "clip"]]
    assert sorted(n["low"] for s in stacks for n in s if n["name"] == "clip") == [
        -3,
        -1,
    ]
    refused = dcli("sample", "ckpt=run", "guidance.cfg.scale=3")
    assert refused.code == 2 and "the run has guidance large, clip" in refused.err
    refused = dcli("sample", "ckpt=run", "guidance=clip,lareg")
    assert refused.code == 2 and "did you mean `large`" in refused.err
    off = dcli("sample", "ckpt=run", "steps=2", "n=2", "guidance=none")
    assert off.code == 0
    about = json.loads((Path(off.out.strip()) / "about.json").read_text())
    assert about["guidance"] == []


def test_single_keys_of_nested_parts_change_the_runs_own(dcli: Dcli) -> None:
    assert dcli("train", *TINY, "guidance=clip").code == 0
    words = ("ckpt=run", "n=2", "steps=2", "sampler.grid.name=quadratic")
    outcome = dcli("sample", *words)
    assert outcome.code == 0, outcome.err
    about = json.loads((Path(outcome.out.strip()) / "about.json").read_text())
    assert about["sampler"]["grid"]["name"] == "quadratic"


def test_an_exact_name_wins(dcli: Dcli) -> None:
    for name in ("points", "points_more", "points-0123abcd"):
        assert dcli("train", *TINY, f"out=runs/{name}").code == 0
    assert "runs/points/" in dcli("sample", "ckpt=points", "n=2", "steps=2").err


def test_a_head_is_trained_beside_the_mean_that_its_weights_predict(dcli: Dcli) -> None:
    assert dcli("train", *TINY, "out=v", "parametrisation=v").code == 0
    head = ("parametrisation=npr", "objective=second_moment", "init=v", "out=head")
    words = (*TINY, *head, "trainable=network.second*")
    refused = dcli("train", *words)
    assert refused.code == 2 and "parametrisation.mean.name=v" in refused.err
    assert dcli("train", *words, "parametrisation.mean.name=v").code == 0
    other = dcli("train", *TINY, "process=vp", "init=v", "out=other")
    assert other.code == 0 and "another process" in other.err
