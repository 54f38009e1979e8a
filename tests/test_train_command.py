"""`dcli train`: what a run leaves, and what it refuses."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from PIL import Image
from tiny import control, interrupted, outcome, place, tiny

from diffusion_cli import checkpoint, preview
from diffusion_cli.commands import train
from diffusion_cli.errors import (
    CheckpointError,
    ConfigError,
    NumericsError,
    OutOfMemory,
    StorageError,
)

__all__ = ["control", "place"]  # fixtures
pytestmark = pytest.mark.usefixtures("place")


def test_what_a_run_leaves(capsys: pytest.CaptureFixture[str]) -> None:
    every = {"log": 5, "save": 4, "preview": 6}
    loss = train.run(tiny(name="first", every=every), ["trainer.steps=12"])
    out, err = capsys.readouterr()
    folder = Path(out.strip())
    assert folder.parent == Path("runs") and folder.name.startswith("first-")
    names = {path.name for path in folder.iterdir()}
    assert names >= {"config.yaml", "overrides.yaml", "environment.json", "samples"}
    assert json.loads((folder / "status.json").read_text())["status"] == "complete"
    metrics = [
        json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()
    ]
    assert [line["step"] for line in metrics] == [5, 10, 12]
    assert loss == metrics[-1]["loss"] and {"lr", "grad_norm"} <= metrics[0].keys()
    steps = [path.name for path in checkpoint.steps(folder / "checkpoints")]
    assert steps == ["step_00000012", "step_00000008"]
    pictures = sorted(path.name for path in (folder / "samples").iterdir())
    kinds = [f"step_{step:08d}{kind}.png" for step in (6, 12) for kind in ("-raw", "")]
    assert pictures == kinds
    header, line, *_ = err.splitlines()
    assert (
        header.startswith("dcli ") and "parameters" in header and "network=mlp" in line
    )
    assert err.splitlines()[-1] == f"dcli sample ckpt={folder}" and "\r" not in err


@pytest.mark.parametrize(("ema", "weights"), [([], " weights=raw"), ([4.0], "")])
def test_the_command_it_ends_with_names_weights_that_there_are(
    ema: list[float], weights: str, capsys: pytest.CaptureFixture[str]
) -> None:
    train.run(tiny(out="run", trainer={"ema": ema}), [])
    assert capsys.readouterr().err.splitlines()[-1] == f"dcli sample ckpt=run{weights}"


def test_a_classifier_is_not_said_to_draw(
    capsys: pytest.CaptureFixture[str],
) -> None:
    toy = {"name": "toy2d", "shape": "moons", "size": 8, "labels": True}
    reading = {"parametrisation": {"name": "classes"}}
    loss = {"name": "classify", "time": {"name": "uniform"}}
    values = tiny(dataset=toy, out="run", **reading, objective=loss)
    for _ in ("trains", "is complete"):
        train.run(values, [])
        told = capsys.readouterr().err
        assert "sampler=" not in told
        ending = "dcli sample ckpt=... guidance=classifier guidance.run=run"
        assert told.splitlines()[-1] == ending


def test_nothing_secret_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "hunter2")
    train.run(tiny(out="run"), [])
    for path in Path("run").rglob("*"):
        assert not path.is_file() or b"hunter2" not in path.read_bytes()


def test_a_complete_run_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    first = train.run(tiny(out="run"), [])
    before = {path: path.stat().st_mtime_ns for path in Path("run").rglob("*")}
    capsys.readouterr()
    assert train.run(tiny(out="run"), []) == first
    assert "already complete at step 12" in capsys.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in Path("run").rglob("*")}


def test_a_falling_rate_cannot_be_extended() -> None:
    falling = {"decay": "cosine"}
    train.run(tiny(out="run", trainer=falling), [])
    with pytest.raises(ConfigError, match=r"trainer\.steps: 12 -> 20") as caught:
        train.run(tiny(out="run", trainer=falling | {"steps": 20}), [])
    assert "init=" in caught.value.hint


def test_another_config_is_refused_and_fresh_begins_again() -> None:
    train.run(tiny(out="run"), [])
    other = {"optimizer": {"name": "sgd"}}
    with pytest.raises(ConfigError, match="holds another config") as caught:
        train.run(tiny(out="run", **other), [])
    assert "optimizer.name: 'adamw' -> 'sgd'" in caught.value.message
    train.run(tiny(out="run", fresh=True, **other), [])
    assert checkpoint.load("run").config["optimizer"]["name"] == "sgd"
    assert (Path("run") / "old-0" / "checkpoints" / "step_00000012").is_dir()


def test_other_data_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(Path("run"), 6)
    monkeypatch.setattr("diffusion_cli.datasets.toy2d.Toy2D.__len__", lambda self: 50)
    with pytest.raises(ConfigError, match="dataset: changed from 100 of"):
        train.run(tiny(out="run"), [])


@pytest.mark.parametrize(
    ("name", "text", "code"),
    [
        ("config.yaml", "trainer: 5", 2),
        ("config.yaml", "a: &a [*a]", 2),
        ("status.json", '{"step": "x", "status": "complete"}', 0),
        ("metrics.jsonl", '{"loss": 1}\n5\n', 0),
    ],
)
def test_a_spoilt_file_of_a_run_is_no_bug(name: str, text: str, code: int) -> None:
    out = Path("spoilt")
    train.run(tiny(out=str(out)), [])
    (out / name).write_text(text)
    longer = tiny(out=str(out), trainer={"steps": 13})
    if code:
        with pytest.raises(ConfigError, match=name):
            train.run(longer, [])
    else:
        train.run(longer, [])


def test_a_file_is_no_run_folder() -> None:
    Path("file").write_text("")
    with pytest.raises(StorageError, match="file"):
        train.run(tiny(out="file"), [])


def test_one_run_at_a_time() -> None:
    train.run(tiny(out="run", trainer={"steps": 4}), [])
    with (
        FileLock("run/.lock"),
        pytest.raises(StorageError, match=f"pid {os.getpid()} on ") as caught,
    ):
        train.run(tiny(out="run"), [])
    assert caught.value.exit_code == 6 and caught.value.code == "LOCKED"
    train.run(tiny(out="run"), [])


def test_a_refused_command_leaves_nothing() -> None:
    cfg = {"name": "cfg", "scale": 2.0}
    with pytest.raises(ConfigError, match="needs labels; the model is unconditional"):
        train.run(tiny(out="run", guidance=cfg), [])
    with pytest.raises(
        ConfigError, match="device: there is no `gpu`; did you mean `cuda`"
    ):
        train.run(tiny(out="run", device="gpu"), [])
    assert list(Path().iterdir()) == []


def test_a_bad_loss_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DCLI_FAULT", "step.loss@7:nan")
    with pytest.raises(NumericsError, match="NONFINITE step 7") as caught:
        train.run(tiny(out="run"), [])
    assert "samples of the data set" in caught.value.message
    assert checkpoint.load("run").step == 4
    assert json.loads(Path("run/status.json").read_text())["status"] == "failed"
    dump = json.loads(Path("run/logs/nonfinite_step_00000007.json").read_text())
    assert len(dump["samples"]) == 8 and dump["bad_rows"] == list(range(8))


def test_no_memory_for_a_preview_is_no_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], control: Path
) -> None:
    def full(*args: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(preview, "_drawn", full)
    train.run(tiny(out="run", every={"preview": 6}), [])
    assert "preview at step 6: out of memory" in capsys.readouterr().err
    assert outcome(Path("run")) == outcome(control)


def test_no_memory_for_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DCLI_FAULT", "step.opt@6:raise:MemoryError")
    with pytest.raises(OutOfMemory, match="step 6 with micro_batch=8") as caught:
        train.run(tiny(out="run"), [])
    assert caught.value.exit_code == 8 and checkpoint.load("run").step == 4


def test_a_full_disk_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DCLI_FAULT", "ckpt.manifest@2:enospc")
    with pytest.raises(StorageError, match="No space left"):
        train.run(tiny(out="run"), [])
    assert checkpoint.load("run").step == 4
    status = json.loads((Path("run") / "status.json").read_text())
    assert (status["status"], status["step"]) == ("failed", 4)


def test_init_starts_from_other_weights(control: Path) -> None:
    train.run(
        tiny(out="run", init=str(control), optimizer={"name": "sgd", "lr": 1e-12}), []
    )
    theirs = checkpoint.load(control).weights("ema")
    for name, tensor in checkpoint.load("run").weights("raw").items():
        torch.testing.assert_close(tensor, theirs[name])


def test_in_a_thread_signals_are_left_alone() -> None:
    """Launchers may run jobs outside the main thread."""
    thread = threading.Thread(target=train.run, args=(tiny(out="run"), []))
    thread.start()
    thread.join()
    assert checkpoint.load("run").step == 12


def test_an_edited_folder_of_images_is_noticed(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for name, level in (("a", 10), ("b", 200)):
        Image.new("L", (4, 4), level).save(images / f"{name}.png")
    data = {"name": "image_folder", "path": str(images), "channels": 1}
    own = {"dataset": data | {"cache": str(tmp_path / "cache")}}
    assert interrupted(Path("run"), 6, **own) == 143
    Image.new("L", (4, 4), 99).save(images / "b.png", compress_level=0)
    with pytest.raises(ConfigError, match="dataset: changed from 2"):
        train.run(tiny(out="run", **own), [])


@pytest.mark.parametrize("own", [{"trainable": "nothing*"}, {"init": "runs/nowhere"}])
def test_a_start_from_nowhere_leaves_nothing(own: dict[str, str]) -> None:
    with pytest.raises((ConfigError, CheckpointError)):
        train.run(tiny(out="run", **own), [])
    assert not Path("run").exists()
