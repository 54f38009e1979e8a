"""The GPU benchmark: its items, its limits, its tables; nothing is measured here."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).parent.parent / "scripts" / "bench"
ROW = {"item": "tail", "side": "dcli", "ms": 1.53456, "batch": 64}
ABOUT = dict.fromkeys(
    ("dcli", "python", "torch", "torchvision", "cuda", "cudnn", "diffusers"), "1.0"
) | {"item": "about", "small": False, "command": "gpu.py", "when": "today"}


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import a file of the benchmark."""
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_every_item_has_a_title_a_file_and_limits(module: Any) -> None:
    gpu = module("gpu")
    assert list(gpu.ITEMS) == list(module("gpu_page").TITLES)
    for item in gpu.ITEMS.values():
        assert callable(module(f"items.{item.name}").measure)
        assert min(item.seconds, item.small) > gpu.LEAST
    *others, _ = gpu.ITEMS.values()
    assert sum(item.seconds for item in others) < gpu.TOTAL


def test_items_keep_their_order_and_unknown_ones_are_refused(
    module: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = module("gpu").arguments
    assert arguments(["real", "tail"]).items == ["tail", "real"]
    assert arguments([]).items == list(module("gpu").ITEMS)
    with pytest.raises(SystemExit):
        arguments(["tial"])
    assert "no item tial; there are ceilings" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--total=nan"], "argument --total: wants seconds above 0, not nan"),
        (["--total=0"], "argument --total: wants seconds above 0, not 0"),
        (["--total=soon"], "argument --total: wants seconds above 0, not soon"),
        (["--out=."], "--out wants a file, and . is a folder"),
        (["tail", "--docs"], "--docs writes the tables of all items"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    words: list[str], said: str, module: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        module("gpu").arguments(words)
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("sleep 60", "its 1 s are over"),
        ("echo first >&2; echo the reason >&2; exit 3", "the reason"),
        ("kill -9 $$", "exit -9"),
    ],
)
def test_an_item_that_fails_is_a_row_with_its_reason(
    text: str, fault: str, module: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gpu = module("gpu")
    row = json.dumps({"side": "kept", "ms": 1})
    fake = script(tmp_path / "python", f"echo '{row}'; {text}")
    monkeypatch.setattr(gpu, "python", lambda: fake)
    monkeypatch.setattr(gpu, "LEAST", 0)
    until = time.monotonic() + 100
    rows = list(gpu.measured(gpu.Item("tail", 100, 1), True, until, tmp_path / "out"))
    assert rows == [json.loads(row), {"side": "", "fault": fault}]


@pytest.mark.parametrize("line", ['{"side": "a"', "hello", "3", '{"ms": 1}'])
def test_a_line_that_is_no_row_is_a_fault_among_the_others(
    line: str, module: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gpu = module("gpu")
    row = json.dumps({"side": "kept", "ms": 1})
    fake = script(tmp_path / "python", f"echo '{line}'; echo '{row}'; exit 3")
    monkeypatch.setattr(gpu, "python", lambda: fake)
    until = time.monotonic() + 100
    rows = list(gpu.measured(gpu.ITEMS["tail"], True, until, tmp_path / "out"))
    bad, end = ({"side": "", "fault": why} for why in (f"not a row: {line}", "exit 3"))
    assert rows == [bad, json.loads(row), end]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_item_too(number: signal.Signals, tmp_path: Path) -> None:
    row = json.dumps({"side": "", "pid": "PID"}).replace('"PID"', "'$$'")
    fake = script(tmp_path / "python", f"echo '{row}'; exec sleep 60")
    code = f"""import sys; sys.path.insert(0, {str(BENCH)!r}); import gpu
gpu.python, gpu.about = lambda: {fake!r}, lambda small: {{}}
gpu.main(["tail", "--small", "--out", {str(tmp_path / "out")!r}])"""
    words = [sys.executable, "-c", code]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()  # about
        item = json.loads(process.stdout.readline())["pid"]
        process.send_signal(number)
        assert process.wait() == 128 + number
    with pytest.raises(ProcessLookupError):
        os.kill(item, 0)


def test_an_item_ends_by_itself_when_nobody_kills_it(tmp_path: Path) -> None:
    item = "import time\ndef measure(bench):\n    time.sleep(200)\n    yield"
    (tmp_path / "endless.py").write_text(item)
    code = f"""import runpy, sys; sys.path.insert(0, {str(BENCH)!r}); import items
items.__path__.append({str(tmp_path)!r})
sys.argv = ["items", "endless", "-5", "picture", "small"]
runpy.run_path({str(BENCH / "items" / "__main__.py")!r}, run_name="__main__")"""
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1 and "Timeout" in done.stderr


def test_no_item_begins_without_time(module: Any, tmp_path: Path) -> None:
    gpu = module("gpu")
    until = time.monotonic() + gpu.LEAST - 1
    (row,) = gpu.measured(gpu.ITEMS["tail"], True, until, tmp_path / "out")
    assert row == {"side": "", "fault": "no time left"}


def test_tables_replace_what_is_between_the_marks(
    module: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    page = module("gpu_page")
    path = tmp_path / "page.md"
    path.write_text(f"before\n{page.BEGIN}\nold\n{page.END}\nafter\n")
    monkeypatch.setattr(page, "PAGE", path)
    other = {"item": "tail", "side": "foreach", "ms": 12345.6}
    missing = {"item": "tail", "side": "graph", "batch": 8, "fault": "not offered"}
    page.tell([ABOUT | {"machine": "a GPU"}, ROW, other, missing])
    text = path.read_text()
    assert text.startswith(f"before\n{page.BEGIN}\n") and "old" not in text
    assert text.endswith(f"{page.END}\nafter\n")
    assert "|  | ms | batch |\n|---|---|---|\n| dcli | 1.53 | 64 |\n" in text
    assert "| foreach | 12,350 | - |\n" in text
    assert "Not measured: graph, batch 8: not offered.  \n" in text
    assert "`gpu.py`, today.  \na GPU. dcli 1.0, python 1.0" in text


TRAINED = {
    "dcli, as its config runs it": {"img/s": 8000.0, "time, dcli = 1": 1.0},
    "diffusers, its example, fp32": {"img/s": 2000.0, "time, dcli = 1": 4.0},
    "diffusers, bf16, channels_last, fused": {"img/s": 5e3, "time, dcli = 1": 1.6},
}
DRAWN = {
    "dcli": {"ms": 40.0, "time, dcli = 1": 1.0},
    "dcli, graphs=false": {"ms": 120.0, "time, dcli = 1": 3.0},
    "DDIMPipeline, fp32": {"ms": 200.0, "time, dcli = 1": 5.0},
}


def seen(item: str, batch: int, sides: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"item": item, "side": side, "batch": batch} | numbers
        for side, numbers in sides.items()
    ]


def test_the_goals_of_a_gpu_are_judged_from_the_rows(module: Any) -> None:
    rows = [*seen("training", 512, TRAINED), *seen("sampling", 1, DRAWN)]
    rows += seen("training", 512, {"dcli, as its config runs it": {"img/s": 1.0}})
    first, second = module("gpu_page").judged(rows)[2:]
    measured = "4x, 1.6x of its best, 8,000 img/s"
    assert first.startswith("| G16 |") and first.endswith(f"| {measured} | met |")
    assert second.startswith("| G17 |") and second.endswith("| 5x | met |")
    slower = TRAINED | {"dcli, as its config runs it": {"img/s": 7400.0}}
    near = DRAWN | {"DDIMPipeline, fp32": {"time, dcli = 1": 3.9}}
    rows = [*seen("training", 512, slower), *seen("sampling", 1, near)]
    assert all(x.endswith("not met |") for x in module("gpu_page").judged(rows)[2:])


def test_a_goal_without_its_rows_is_not_judged(module: Any) -> None:
    rows = [*seen("training", 128, TRAINED), *seen("sampling", 16, DRAWN)]
    rows.append({"item": "sampling", "side": "dcli", "batch": 1, "fault": "memory"})
    lines = module("gpu_page").judged(rows)[2:]
    assert len(lines) == 2 and all("| - | not measured |" in x for x in lines)


def test_the_page_has_the_marks(module: Any) -> None:
    page = module("gpu_page")
    text = page.PAGE.read_text()
    assert text.count(page.BEGIN) == text.count(page.END) == 1


def test_the_recipe_is_what_hydra_composes(module: Any) -> None:
    from diffusion_cli import config

    words = ["+exp=ddpm_cifar", "sampler=ddim", "trainer.batch=512"]
    theirs = module("subjects.own_training").composed(words)
    ours = module("recipe").recipe(batch=512)
    assert config.check(ours | {"dataset": theirs["dataset"]}) == theirs
