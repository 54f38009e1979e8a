"""What is missing of a run is told, and what is left of it is not lost."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from conftest import Dcli

TRAIN = "train dataset=toy2d process=flow network.width=8 network.depth=1 "
TRAIN += "trainer.batch=8 trainer.workers=0 every.log=1 every.preview=0 device=cpu "
TRAIN += "sampler.steps=2 out=runs/run trainer.steps=4"
RUN = Path("runs/run")


@pytest.fixture
def run(dcli: Dcli) -> Path:
    assert dcli(*TRAIN.split()).code == 0
    return RUN


def test_a_run_without_its_checkpoints_is_set_aside(
    run: Path, dcli: Dcli, caplog: pytest.LogCaptureFixture
) -> None:
    log = (run / "metrics.jsonl").read_bytes()
    shutil.rmtree(run / "checkpoints")
    again = dcli(*TRAIN.split())
    assert again.code == 0, again.err
    assert "the checkpoint of step 4 is gone" in caplog.text
    assert "what was in " in caplog.text and " lies in old-0" in caplog.text
    assert (run / "old-0" / "metrics.jsonl").read_bytes() == log
    assert len(list((run / "checkpoints").iterdir())) == 1


def test_a_checkpoint_that_lacks_a_file_is_not_complete(run: Path, dcli: Dcli) -> None:
    assert "already complete" in dcli(*TRAIN.split()).err
    next(run.glob("checkpoints/*/ema-*")).unlink()
    found = dcli(*TRAIN.split())
    assert found.code == 4 and "already complete" not in found.err
    assert "hint: dcli train ... fresh=true begins again" in found.err


def test_a_run_that_has_not_saved_is_not_corrupt(run: Path, dcli: Dcli) -> None:
    shutil.rmtree(run / "checkpoints")
    for folder in (None, "checkpoints"):
        if folder:
            (run / folder).mkdir()
        found = dcli("sample", f"ckpt={run}", "n=2")
        assert found.code == 4 and "CKPT-MISSING" in found.err, found.err
        assert "has no checkpoint, or none yet" in found.err


def test_a_checkpoint_knows_its_config_without_the_file(run: Path, dcli: Dcli) -> None:
    """A run that lacks config.yaml is neither mixed with another nor refused."""
    status = (run / "status.json").read_text().replace("complete", "stopped")
    for words, code in ((["optimizer.lr=1e-2"], 2), ([], 0)):
        (run / "config.yaml").unlink()
        (run / "status.json").write_text(status)
        found = dcli(*TRAIN.split(), *words)
        assert found.code == code, found.err
        assert ("holds another config" in found.err) == bool(code)
        (run / "config.yaml").touch()


def test_the_folder_of_all_runs_is_no_run(run: Path, dcli: Dcli) -> None:
    found = dcli("sample", "ckpt=runs", "n=2")
    assert found.code == 4 and "runs holds 1 runs, and is none" in found.err
    assert f"hint: ckpt={run}" in found.err


def test_a_complete_run_says_that_it_was_not_measured(run: Path, dcli: Dcli) -> None:
    found = dcli(*TRAIN.split(), "metric=w2", "every.eval=2", "evaluation.n=20")
    assert found.code == 0 and "already complete at step 4" in found.err
    assert "metric: a complete run is measured by `dcli eval`" in found.err


def test_both_curves_of_a_run_stay(run: Path, dcli: Dcli) -> None:
    words = ["eval", f"ckpt={run}", "metric=nfe_curve", "metric.of.name=sliced_w2"]
    words += ["n=16", "metric.calls=[2]"]
    for samplers in ("euler", "heun"):
        assert dcli(*words, f"metric.samplers=[{samplers}]").code == 0
    tables = [path.read_text() for path in run.glob("derived/*/nfe_curve-*.csv")]
    assert sorted("heun," in table for table in tables) == [False, True]
    shown = dcli("runs", "show", str(run))
    assert "euler_2" not in shown.out  # the picture shows it, and no row says how


def test_a_sampler_that_does_not_exist_ends_a_curve(run: Path, dcli: Dcli) -> None:
    words = ["eval", f"ckpt={run}", "metric=nfe_curve", "metric.of.name=sliced_w2"]
    found = dcli(*words, "n=16", "metric.samplers=[euler,hoin]")
    assert found.code == 2 and "there is no `hoin`; did you mean `heun`?" in found.err
    assert "network calls" not in found.err and not (run / "derived").exists()


@pytest.mark.parametrize(
    "words, rows", [("n=3", 3), ("n=3 batch=5", 5), ("n=70", 64), ("n=70 batch=7", 7)]
)
def test_no_more_is_drawn_than_was_asked_for(
    run: Path, dcli: Dcli, words: str, rows: int
) -> None:
    import numpy as np

    found = dcli("sample", f"ckpt={run}", "format=npz", "out=s", *words.split())
    assert found.code == 0, found.err
    assert len(np.load("s/chunks/000000.npy")) == rows


MISTAKES = {
    "sample ckpt=runs/run n=2 out=inf": "hint: \"out='inf'\"",
    "eval ckpt=runs/run metric=w2 nn=2": "did you mean `n`?",
    "eval ckpt=runs/run metric=fid features=inception n=4": "hint: w2, sliced_w2",
    TRAIN + " optimizer.lr=1e-2": "hint: out=<another folder>, or fresh=true",
}


@pytest.mark.parametrize("words", MISTAKES)
def test_hints_can_be_typed(run: Path, dcli: Dcli, words: str) -> None:
    found = dcli(*words.split())
    assert found.code == 2 and MISTAKES[words] in found.err, found.err
