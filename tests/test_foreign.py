"""Run folders of anybody: nothing hangs, swells or ends a command with a traceback."""

from __future__ import annotations

import json
import os
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Dcli
from pages import left

from diffusion_cli import foreign, records

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join(['*' + a] * 9)}]\n"
    for a, b in zip("abcdefghi", "bcdefghij", strict=True)
)


def test_names_that_refer_to_names_are_not_unfolded(tmp_path: Path) -> None:
    """9^10 values in 500 bytes."""
    (tmp_path / "c.yaml").write_text(BOMB)
    assert foreign.yaml_in(tmp_path / "c.yaml") is None
    (tmp_path / "c.yaml").write_text("a: &a {b: *a}")  # it holds itself
    assert foreign.yaml_in(tmp_path / "c.yaml") is None
    (tmp_path / "c.yaml").write_text("a: &a {b: [1, 2]}\nc: *a")
    assert foreign.yaml_in(tmp_path / "c.yaml")["c"] == {"b": [1, 2]}


def test_what_unfolds_to_too_much_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(f"- &a [{'1,' * 6000}]\n- [{'*a,' * 3000}]")
    assert foreign.yaml_in(path) is None
    assert peak(lambda: foreign.yaml_in(path)) < 8 * 6000 * 3000 / 4


def test_yaml_is_read_if_it_is_short(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    for more, read in ((0, True), (1, False)):
        path.write_text("a: " + "x" * ((1 << 16) - 3 + more))
        assert (foreign.yaml_in(path) is not None) == read


@pytest.mark.parametrize("text", ["a: [b", "a: {b: c", "a: b: c", "\ta: b"])
def test_what_is_no_yaml_is_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(text)
    assert foreign.yaml_in(tmp_path / "c.yaml") is None


TAGS = (
    *("!!bool maybe", '!!int ""', "!!timestamp x", "!!float x", "!!binary é"),
    *("!!map x", "!!set [1]", "!!python/name:os.system", "{[]: 1}"),
    *(
        "[{2020-01-01: 1}]",
        "1" + ":59" * 4000,
        "1" * 5000,
        str(2**63),
        str(-(2**63) - 1),
    ),
    "0x" + "f" * 400,
)


@pytest.mark.parametrize("value", TAGS)
def test_a_value_that_is_none_spoils_its_config_alone(
    value: str, tmp_path: Path, dcli: Dcli
) -> None:
    runs = tmp_path / "runs"
    other, _ = left(runs / "other"), left(runs / "sound")
    with (other / "config.yaml").open("a") as file:
        file.write(f"extra: {value}\n")
    assert foreign.yaml_in(other / "config.yaml") is None
    for words in (("runs", "diff", "runs"), ("report", "runs")):
        found = dcli(*words)
        assert found.code == 0, found.err


def test_whole_numbers_of_64_bits_are_read(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(f"[{2**63 - 1}, {-(2**63)}, 1:30, 0b{'1' * 63}]")
    found = foreign.yaml_in(tmp_path / "c.yaml")
    assert found == [2**63 - 1, -(2**63), 90, 2**63 - 1]


def test_a_step_beyond_64_bits_is_passed_over(tmp_path: Path) -> None:
    run = left(tmp_path / "a", step=10**400)
    log = run / "metrics.jsonl"
    sound = log.read_text()
    beyond = "".join(f'{{"step": {s}, "loss": 9}}\n' for s in (10**400, -(2**63) - 1))
    log.write_text(sound + beyond + '{"step": 5, "grad_norm": 1}\n')
    record = records.Record(run)
    assert record.status == {"status": "unknown"}
    assert record.last == {"step": 5, "grad_norm": 1, "loss": 0.25, "loss_t0.5": 2.0}
    assert [line["step"] for line in record.metrics] == [1, 2, 3, 4, 5]


def peak(act: Callable[[], object]) -> int:
    act()  # imports
    tracemalloc.start()
    try:
        act()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_logs_take_the_memory_of_what_is_looked_at(tmp_path: Path) -> None:
    """One line as they are gone through, and the last lines for the end."""
    log = tmp_path / "metrics.jsonl"
    log.write_text('{"step": 1, "loss": 0.5}\n' * 40_000)
    size = log.stat().st_size
    assert peak(lambda: sum(1 for _ in records.entries(log))) < size / 8
    assert peak(lambda: records.tail(log)) < size / 8


def test_lines_are_let_go_of_as_often_as_one_likes(tmp_path: Path) -> None:
    record = records.Record(left(tmp_path / "a"))
    for _ in range(2):
        record.forget()
    assert len(record.metrics) == 4


def bomb(run: Path) -> None:
    (run / "config.yaml").write_text(BOMB)
    (run / "overrides.yaml").write_text(BOMB)


def pipe(run: Path) -> None:
    for name in ("metrics.jsonl", "config.yaml", "status.json"):
        (run / name).unlink(missing_ok=True)
        os.mkfifo(run / name)


def steps(run: Path) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.write(f'{{"step": {10**400}, "loss": 1}}\n')


def numbers(*values: str):
    def write(run: Path) -> None:
        log = [f'{{"step": {i}, "loss": {v}}}' for i, v in enumerate(values, 1)]
        (run / "metrics.jsonl").write_text("\n".join(log))

    return write


FOREIGN = {
    "bomb": bomb,
    "pipe": pipe,
    "steps beyond floats": steps,
    "a whole number beyond floats": numbers("1" + "0" * 400),
    "numbers that no axis holds": numbers("1e308", "1e308"),
    "the largest numbers": numbers("1e308", "-1e308"),
    "large numbers": numbers("1e149", "-1e149", "1e-300"),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_a_foreign_folder_takes_nothing_from_its_neighbours(
    what: str, tmp_path: Path, dcli: Dcli
) -> None:
    sound, other = left(tmp_path / "runs" / "sound"), left(tmp_path / "runs" / "other")
    FOREIGN[what](other)
    for words in (("runs", "ls"), ("runs", "show", "runs/sound", str(other))):
        found = dcli(*words)
        assert found.code == 0 and "sound" in found.out, found.err
    page = dcli("report", "runs")
    assert page.code == 0, page.err
    assert "sound" in Path(page.out.strip()).read_text() and sound


def test_a_name_of_any_bytes_stands_in_one_line(tmp_path: Path, dcli: Dcli) -> None:
    runs = tmp_path / "runs"
    left(runs / "sound")
    for name in (b"bad\xff\xfe", b"red\x1b[31m", b"new\nline", b"$(touch x)"):
        left(runs / os.fsdecode(name))
    found = dcli("runs", "ls")
    assert found.code == 0 and len(found.out.splitlines()) == 6
    assert "\x1b" not in found.out and r"red\x1b[31m" in found.out
    page = dcli("report", "runs")
    assert page.code == 0, page.err
    html = Path(page.out.strip()).read_text(encoding="utf-8")
    assert r"bad\udcff\udcfe" in html
    assert "dcli sample &#39;ckpt=" in html and "ckpt=runs/$(" not in html


def test_numbers_that_can_be_shown() -> None:
    sound = (0, -1.5, sys.float_info.max)
    assert all(map(records.finite, sound))
    for value in (10**400, float("inf"), float("nan"), True, "1", None):
        assert not records.finite(value)


def damaged(samples: Path, name: str, data: bytes) -> None:
    (samples / "chunks" / name).write_bytes(data)


SAMPLE = ["dataset=toy2d", "process=flow", "network.width=8", "network.depth=1"]
SAMPLE += ["trainer.steps=2", "trainer.batch=8", "trainer.workers=0", "out=run"]
SPOILT = (b"", b"\x80\xff\x00\x17" * 9, b"[1, 2]")


def test_damaged_samples_are_drawn_again(
    dcli: Dcli, caplog: pytest.LogCaptureFixture
) -> None:
    assert dcli("train", *SAMPLE, "every.preview=0").code == 0
    words = ("sample", "ckpt=run", "n=8", "batch=4", "steps=1", "out=s", "format=npz")
    assert dcli(*words).code == 0
    chunk = Path("s/chunks/000001.npy")
    whole, samples = chunk.read_bytes(), Path("s/samples.npz").read_bytes()
    for data in (*SPOILT, whole[:40], whole[:-8]):
        damaged(Path("s"), chunk.name, data)
        again = dcli(*words)
        assert again.code == 0 and "damaged and drawn again" in caplog.text, again.err
        caplog.clear()
        assert chunk.read_bytes() == whole
        assert Path("s/samples.npz").read_bytes() == samples
    for name in ("calls.json", "saved"):
        for data in SPOILT:
            damaged(Path("s"), name, data)
            again = dcli(*words, "format=png")
            assert again.code == 0, again.err
    about = json.loads(Path("s/about.json").read_text())
    assert about["network_calls_per_sample"] == 1
    for data in SPOILT:
        damaged(Path("s"), "request.json", data)
        refused = dcli(*words)
        assert refused.code == 3 and "hint: delete s" in refused.err, refused.err


def test_a_torn_line_hides_no_measurement(dcli: Dcli) -> None:
    assert dcli("train", *SAMPLE, "every.preview=0").code == 0
    words = ("eval", "ckpt=run", "n=20", "steps=1")
    assert dcli(*words, "metric=w2").code == 0
    (log,) = Path("run").glob("derived/*/metrics.jsonl")
    log.write_bytes(log.read_bytes()[:-30])
    assert dcli(*words, "metric=mmd").code == 0
    assert len(log.read_bytes().splitlines()) == 2
    shown = dcli("runs", "show", "run")
    assert shown.code == 0 and "mmd2" in shown.out, shown.out


def test_a_newer_checkpoint_is_sound(dcli: Dcli) -> None:
    """It is not set aside, and no older one is taken for it."""
    words = ("train", *SAMPLE, "every.preview=0", "every.save=1")
    assert dcli(*words).code == 0
    place = Path("run/checkpoints/step_00000002/manifest.json")
    place.write_text(json.dumps({**json.loads(place.read_text()), "format": 2}))
    status = Path("run/status.json")
    status.write_text(status.read_text().replace("complete", "stopped"))
    for command in (words, ("eval", "ckpt=run", "metric=w2", "n=20", "steps=1")):
        found = dcli(*command)
        assert found.code == 4 and "format 2 > supported 1" in found.err, found.err
        assert place.exists()
