"""What TensorBoard is told, read back from the files it reads."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.metadata import (
    SESSION_END_INFO_TAG,
    SESSION_START_INFO_TAG,
    parse_session_end_info_plugin_data,
    parse_session_start_info_plugin_data,
)
from tiny import interrupted, tiny

from diffusion_cli.commands import train
from diffusion_cli.identity import decides, dotted
from diffusion_cli.records import lines
from diffusion_cli.tracking import Bar


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def events(run: str = "run") -> EventAccumulator:
    return EventAccumulator(f"{run}/tensorboard").Reload()


def content(board: EventAccumulator, tag: str) -> bytes:
    return board.SummaryMetadata(tag).plugin_data.content


def test_every_logged_number_is_a_curve() -> None:
    """Loss over all and by time, gradient norm, speed, memory, rate."""
    train.run(tiny(out="run"), [])
    board, logged = events(), lines(Path("run/metrics.jsonl"))
    names = {name for line in logged for name in line} - {"step"}
    levels = {name: f"loss by time/{name[6:]}" for name in names if "loss_t" in name}
    assert {"loss", "lr", "grad_norm", "images_per_second", "memory_gib"} < names
    assert len(levels) >= 5
    assert set(board.Tags()["scalars"]) == {levels.get(name, name) for name in names}
    for name in names:
        told = {e.step: e.value for e in board.Scalars(levels.get(name, name))}
        expected = {line["step"]: line[name] for line in logged if name in line}
        assert told == pytest.approx(expected, rel=1e-6)


def test_the_same_seeds_under_averaged_and_raw_weights() -> None:
    """Two pictures at each step, as the files; the weights alone tell them apart."""
    train.run(tiny(out="run", every={"preview": 6}), [])
    board = events()
    assert set(board.Tags()["images"]) == {"samples/ema", "samples/raw"}
    for weights, ending in (("ema", ""), ("raw", "-raw")):
        shown = board.Images(f"samples/{weights}")
        assert [event.step for event in shown] == [6, 12]
        for event in shown:
            path = Path("run/samples") / f"step_{event.step:08d}{ending}.png"
            told = Image.open(io.BytesIO(event.encoded_image_string))
            assert np.array_equal(np.asarray(told), np.asarray(Image.open(path)))
    ema, raw = (board.Images(f"samples/{w}")[-1] for w in ("ema", "raw"))
    assert ema.encoded_image_string != raw.encoded_image_string
    none = tiny(out="none", every={"preview": 6}, trainer={"ema": []})
    train.run(none, [])
    assert set(events("none").Tags()["images"]) == {"samples/raw"}


def test_hyperparameters_are_what_decides_the_run() -> None:
    """With no list of metrics, TensorBoard compares runs by whatever they measured."""
    config = tiny(out="run")
    train.run(config, [])
    board = events()
    start = parse_session_start_info_plugin_data(content(board, SESSION_START_INFO_TAG))
    told = {name: value for name, value in start.hparams.items()}
    flat = dotted(config)
    assert set(told) == {k for k, v in flat.items() if decides(k) and v is not None}
    assert told["optimizer.lr"].number_value == 0.01
    assert told["process.schedule.name"].string_value == "linear"
    assert told["trainer.ema"].string_value == "[4.0]"
    end = parse_session_end_info_plugin_data(content(board, SESSION_END_INFO_TAG))
    assert end.status == 1  # STATUS_SUCCESS
    assert "_hparams_/experiment" not in board.summary_metadata


def test_only_a_complete_run_is_called_one() -> None:
    interrupted(Path("run"), 6)
    assert SESSION_START_INFO_TAG in events().summary_metadata
    assert SESSION_END_INFO_TAG not in events().summary_metadata
    train.run(tiny(out="run"), [])
    assert SESSION_END_INFO_TAG in events().summary_metadata


@pytest.mark.parametrize(
    "rate, told", [(32120.4, "32,120"), (99.96, "100"), (8.123, "8.12"), (0.5, "0.5")]
)
def test_a_speed_is_read_without_an_exponent(
    rate: float, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Bar(0, 9, 4).show(3, {"loss": 0.25, "images_per_second": rate})
    assert f"loss 0.25  {told} samples/s  left" in capsys.readouterr().err
