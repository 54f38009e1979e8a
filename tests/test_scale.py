"""What must not grow, in counts: files of a run, looks at a sweep, an order of data."""

from __future__ import annotations

import io
import os
import sys
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Dcli
from pages import left
from test_cost import Operations
from tiny import Setup
from torch import Tensor

from diffusion_cli import records, sweep
from diffusion_cli.datasets.images import Images, image_spec
from diffusion_cli.datasets.tables import Table, read_table
from diffusion_cli.report.page import page
from diffusion_cli.rng import Rng, shuffled

READ = {
    ("runs", "ls"): {"status.json": 1, "metrics.jsonl": 1, "overrides.yaml": 1},
    ("runs", "diff"): {"config.yaml": 1, "environment.json": 1},
    ("report",): {
        **{"status.json": 1, "metrics.jsonl": 2, "config.yaml": 1},
        **{"overrides.yaml": 1, "environment.json": 1, "step_00000004.png": 1},
    },
}


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often a path of some name is opened."""
    found: Counter[str] = Counter()
    real = io.open

    def counting(file: Any, *args: Any, **more: Any) -> Any:
        if isinstance(file, str | os.PathLike):
            found[Path(file).name] += 1
        return real(file, *args, **more)

    monkeypatch.setattr(io, "open", counting)
    return found


def several(folder: Path, count: int) -> str:
    for number in range(count):
        left(folder / f"run-{number:02d}")
    return str(folder)


@pytest.mark.parametrize("words", READ, ids=" ".join)
def test_files_of_a_run_are_read_once(
    words: tuple[str, ...], tmp_path: Path, dcli: Dcli, opened: Counter[str]
) -> None:
    """And no other ones; `report` reads its log for the end and for the curve."""
    folder = several(tmp_path / "many", 6)
    opened.clear()
    assert dcli(*words, folder).code == 0
    names = {path.name for path in (tmp_path / "many").rglob("*.*")}
    seen = {name: count / 6 for name, count in opened.items() if name in names}
    assert seen == READ[words]


@pytest.mark.parametrize("words", READ, ids=" ".join)
def test_work_grows_as_the_runs_do(
    words: tuple[str, ...], tmp_path: Path, dcli: Dcli
) -> None:
    """Calls of functions: from 16 to 32 runs at most twice as many more as to 16."""

    def calls(count: int) -> int:
        folder, seen = several(tmp_path / f"runs-{count}", count), 0

        def note(frame: Any, event: str, argument: Any) -> None:
            nonlocal seen
            seen += event in ("call", "c_call")

        sys.setprofile(note)
        try:
            assert dcli(*words, folder).code == 0
        finally:
            sys.setprofile(None)
        return seen

    calls(2)  # imports
    few, some, many = calls(8), calls(16), calls(32)
    assert many - some <= 2.05 * (some - few)


def test_a_page_holds_one_log_at_a_time(tmp_path: Path) -> None:
    """Each run costs what is drawn of it, however long it was."""

    def peak(count: int) -> int:
        folder = Path(several(tmp_path / f"runs-{count}", count))
        lines = [f'{{"step": {i}, "loss": {i}.5}}\n' for i in range(4000)]
        for run in folder.iterdir():
            (run / "metrics.jsonl").write_text("".join(lines))
        found = [records.Record(path) for path in sorted(folder.iterdir())]
        tracemalloc.start()
        try:
            page(found)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(1)  # imports
    log = 4000 * sys.getsizeof({"step": 1, "loss": 1.5})  # and more, its numbers
    assert peak(6) - peak(2) < 4 * log / 4


def test_names_are_looked_up_in_one_listing(
    tmp_path: Path, dcli: Dcli, monkeypatch: pytest.MonkeyPatch
) -> None:
    several(tmp_path / "runs", 4)
    real, listed = records.within, []

    def within(folder: Path) -> Any:
        listed.append(folder.name)
        return real(folder)

    monkeypatch.setattr(records, "within", within)
    assert dcli("runs", "show", *(f"run-0{i}" for i in range(4))).code == 0
    assert listed.count("runs") == 1


def test_a_config_that_libyaml_refuses_is_read(tmp_path: Path, dcli: Dcli) -> None:
    """A path of any bytes, as our own writer escapes it."""
    run = left(tmp_path / "runs" / "a")
    (run / "config.yaml").write_text('dataset: {name: d, path: "\\uDCFF"}')
    assert records.Record(run).flat["dataset.path"] == "\udcff"


def job(home: Path, number: int, status: str) -> None:
    one = sweep.Job(home, number)
    one.begin([f"seed={number}"])
    if status != "running":
        one.end(status, 0, "", None)


def said(news: sweep.News) -> list[tuple[int, str]]:
    return [(one.number, told["status"]) for one, told in news.look()]


def test_jobs_that_say_nothing_are_not_read(
    tmp_path: Path, opened: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(sweep.time, "monotonic", lambda: now)
    news = sweep.News(tmp_path)
    assert said(news) == []
    for number in range(4):
        job(tmp_path, number, "running")
    assert said(news) == [(number, "running") for number in range(4)]
    listed: list[Path] = []
    real = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(path) or real(path))
    opened.clear()
    for _ in range(9):  # two changes may have one time: it looks, and reads nothing
        assert said(news) == []
        now += 1
    assert not opened and 2 <= len(listed) <= 4
    job(tmp_path, 2, "failed")
    opened.clear()
    assert said(news) == [(2, "failed")]
    assert opened == {"00002.json": 1}


def test_a_file_that_cannot_be_read_is_looked_at_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(sweep.time, "monotonic", lambda: now)
    job(tmp_path, 0, "done")
    news = sweep.News(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(sweep.Job, "told", {})
        for _ in range(4):
            assert said(news) == []
            now += 10
    assert said(news) == [(0, "done")]


def test_a_file_that_cannot_be_found_hides_no_other(tmp_path: Path) -> None:
    job(tmp_path, 0, "done")
    (tmp_path / "jobs" / "00007.json").symlink_to("nowhere")
    job(tmp_path, 8, "failed")
    news = sweep.News(tmp_path)
    assert said(news) == [(0, "done"), (8, "failed")] and said(news) == []


def test_changes_of_one_time_are_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clocks are coarse: neither folder nor file says that it changed."""
    now, stamp, seen = 100.0, (10**9, 10**9), []
    monkeypatch.setattr(sweep.time, "monotonic", lambda: now)
    news = sweep.News(tmp_path)
    one, other = sweep.Job(tmp_path, 0), sweep.Job(tmp_path, 1)
    for act in (
        lambda: one.begin([]),
        lambda: one.end("done", 0, "", None),
        lambda: other.begin([]),
    ):
        act()
        for path in [*(tmp_path / "jobs").iterdir(), tmp_path / "jobs"]:
            os.utime(path, ns=stamp)
        seen += said(news)
        now += 0.5
    assert seen == [(0, "running"), (0, "done"), (1, "running")]


class Cached(Images):
    """Whatever lies in a folder of the cache."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder, self.spec = folder, image_spec((3, 1024, 1024), ("one",))

    def read(self) -> Table:
        return read_table(self.folder)


@pytest.mark.filterwarnings("error")
def test_data_larger_than_memory_are_mapped(tmp_path: Path) -> None:
    """A terabyte, of which no block is on the disk."""
    count = 2**40 // (3 * 2**20)
    np.save(tmp_path / "labels.npy", np.zeros(count, np.int64))
    (tmp_path / "shape.json").write_text("[3, 1024, 1024]")
    with (tmp_path / "pixels.u8").open("wb") as file:
        file.truncate(count * 3 * 2**20)
    data = Cached(tmp_path)
    data.prepare()
    last = torch.tensor([count - 1])
    x0, _ = data.batch(last, Rng(0, last))
    assert not data.to(torch.device("cpu")) and bool((x0 == -1).all())


class Largest(Operations):
    """The most elements of a tensor that any operation made."""

    size = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = super().__torch_dispatch__(func, types, args, kwargs)
        if isinstance(out, Tensor):
            self.size = max(self.size, out.numel())
        return out


@pytest.mark.parametrize(
    ("length", "most"), [(4**5, 512), (4**12, 4 * 2**12), (4**20, 512)]
)
def test_an_order_takes_the_memory_of_what_is_asked(length: int, most: int) -> None:
    """Not of the data: torch's tensors, and numpy's, which computes the words.

    In between, four rounds of up to 4,096 cases each are looked up.
    """
    place = torch.arange(10**9, 10**9 + 512)
    with Largest() as seen:
        shuffled(place, length, 0)  # what is imported on the way is not counted
        tracemalloc.start()
        try:
            shuffled(place, length, 0)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert seen.size == most
    assert peak <= 32 * 8 * most


def test_the_operations_of_a_step_do_not_grow_with_the_data() -> None:
    """Loading included; at powers of 4 no index walks on."""

    def operations(size: int) -> int:
        node = {"name": "toy2d", "size": size, "shape": "moons"}
        setup = Setup(parts={"dataset": node})
        run = setup.trainer.run(setup.state, setup.batches(4))
        next(run)
        with Operations() as seen:
            next(run)
        return seen.counts.total()

    assert operations(4**4) == operations(4**8)
