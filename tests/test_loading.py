"""Batches are arithmetic: nothing but the seed and the step can change one."""

import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing import current_process, get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_cli import loading
from diffusion_cli.core import Spec
from diffusion_cli.datasets import Batch, Dataset, datasets
from diffusion_cli.errors import DataError, WorkerError
from diffusion_cli.loading import MicroBatch, batches
from diffusion_cli.rng import Rng, shuffled

CPU = torch.device("cpu")


class Ramp(Dataset):
    """Sample i is i / length, and noise; it never moves to a device by itself."""

    def __init__(self, length: int = 10, resident: bool = False) -> None:
        self.length, self.resident = length, resident
        self.spec = Spec((2,), classes=length)
        self.fault: Callable[[Tensor], None] = lambda indices: None

    def __len__(self) -> int:
        return self.length

    def batch(self, indices: Tensor, rng: Rng) -> Batch:
        self.fault(indices)
        noise = rng.child("noise").uniform((len(indices), 1)).float()
        x0 = torch.cat((indices[:, None] / self.length, noise), 1)
        return x0, {"label": indices}

    def to(self, device: torch.device) -> bool:
        return self.resident

    @classmethod
    def save(cls, x: Tensor, spec: Spec, folder: Path, first: int) -> None:
        raise NotImplementedError

    @classmethod
    def picture(cls, x: Tensor, spec: Spec) -> Tensor:
        raise NotImplementedError


def load(data: Dataset, **changes: Any) -> list[list[MicroBatch]]:
    values: dict[str, Any] = {
        **{"seed": 3, "first": 0, "last": 4, "batch": 6, "micro_batch": 6},
        **{"device": CPU, "workers": 0},
    }
    return [list(step) for step in batches(data, **(values | changes))]


def joined(step: list[MicroBatch]) -> tuple[Tensor, Tensor, Tensor]:
    parts = [(part.x0, part.cond["label"], part.rows) for part in step]
    x0, label, rows = (torch.cat(columns) for columns in zip(*parts, strict=True))
    return x0, label, rows


def same(a: list[list[MicroBatch]], b: list[list[MicroBatch]]) -> bool:
    pairs = zip(a, b, strict=True)
    return all(
        torch.equal(left, right)
        for one, two in pairs
        for left, right in zip(joined(one), joined(two), strict=True)
    )


def test_steps_are_the_shuffled_sequence() -> None:
    for k, step in enumerate(load(Ramp(), first=2, last=6), 2):
        _, label, rows = joined(step)
        place = torch.arange(k * 6, (k + 1) * 6)
        assert torch.equal(label, shuffled(place, 10, 3))
        assert torch.equal(rows, torch.arange(6))


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes")
@pytest.mark.parametrize("workers", [0, 2, 4])
@pytest.mark.parametrize("micro_batch", [2, 6])
def test_nothing_changes_a_batch(workers: int, micro_batch: int) -> None:
    wanted = load(Ramp(resident=True))
    found = load(Ramp(), workers=workers, micro_batch=micro_batch)
    assert [len(step) for step in found] == [6 // micro_batch] * 4
    assert same(wanted, found)


@pytest.mark.parametrize("resident", [True, False])
def test_a_restart_continues_the_sequence(
    resident: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "AHEAD", 12)  # two steps shuffled in one go
    whole = load(Ramp(resident=resident), last=7)
    parts = load(Ramp(resident=resident), last=3) + load(
        Ramp(resident=resident), first=3, last=7
    )
    assert same(whole, parts)


def test_another_seed_gives_other_batches() -> None:
    assert not same(load(Ramp()), load(Ramp(), seed=4))


@pytest.mark.parametrize("resident", [True, False])
def test_the_reference_of_a_step_is_its_own_stream(resident: bool) -> None:
    plain = load(Ramp(resident=resident))
    found = [
        load(Ramp(resident=resident), reference=20, micro_batch=size) for size in (2, 6)
    ]
    assert same(plain, found[0]) and same(plain, found[1])
    firsts = [[step[0].cond for step in steps] for steps in found]
    for one, two in zip(*firsts, strict=True):
        assert torch.equal(one["reference"], two["reference"])
        assert one["reference"].shape[0] == len(one["reference_label"]) == 20
    assert not torch.equal(firsts[0][0]["reference"], firsts[0][1]["reference"])
    assert all("reference" not in part.cond for step in found[0] for part in step[1:])
    indices = torch.cat([cond["reference_label"] for cond in firsts[0]])
    assert 0.5 < float(indices.bincount(minlength=10).double().std()) < 5


@pytest.mark.parametrize("length", [1, 3])
@pytest.mark.parametrize("resident", [True, False])
def test_a_set_smaller_than_the_batch_wraps(length: int, resident: bool) -> None:
    for step in load(Ramp(length, resident)):
        _, label, _ = joined(step)
        assert label.bincount().tolist() == [6 // length] * length


def test_no_steps_are_no_batches() -> None:
    assert load(Ramp(), first=4) == []


def test_micro_batches_are_made_one_at_a_time() -> None:
    made = []
    data = Ramp(resident=True)
    data.fault = lambda indices: made.append(len(indices))
    steps = batches(
        data,
        **{"seed": 0, "first": 0, "last": 9, "batch": 6, "micro_batch": 2},
        device=CPU,
        workers=0,
    )
    step = next(steps)
    next(step)
    assert made == [2]  # the first one was looked at, and is not made again


def test_loading_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    load(Ramp(), workers=2)
    load(Ramp(resident=True))
    assert torch.equal(torch.get_rng_state(), before)


def test_digits_flow_through_workers_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    digits = datasets["digits"]()
    digits.prepare()
    wanted = load(digits, batch=8, micro_batch=8)
    monkeypatch.setattr("diffusion_cli.datasets.images.RESIDENT", 0)
    assert not digits.to(CPU)
    assert same(wanted, load(digits, batch=8, micro_batch=4, workers=2))


def fail_at(number: int) -> Callable[[Tensor], None]:
    def fault(indices: Tensor) -> None:
        if number in indices.tolist():
            raise OSError(f"no bytes in {number}.png")

    return fault


@pytest.mark.parametrize("workers", [0, 2])
def test_a_sample_that_fails_is_named(workers: int) -> None:
    data = Ramp()
    data.fault = fail_at(7)
    with pytest.raises(DataError) as caught:
        load(data, workers=workers)
    message = "dataset: sample 7 cannot be loaded: OSError: no bytes in 7.png"
    assert caught.value.message == message


def test_an_error_of_ours_passes_through_a_worker_whole() -> None:
    def fault(indices: Tensor) -> None:
        raise DataError("here: it is broken", "mend it")

    data = Ramp()
    data.fault = fault
    with pytest.raises(DataError) as caught:
        load(data, workers=2)
    assert (caught.value.message, caught.value.hint) == (
        "here: it is broken",
        "mend it",
    )


def kill(indices: Tensor) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def leave(indices: Tensor) -> None:
    sys.exit(3)


def hang(indices: Tensor) -> None:
    time.sleep(6)


@pytest.mark.parametrize("fault", [kill, leave, hang])
def test_a_worker_that_dies_or_hangs_is_exit_9(
    fault: Callable[[Tensor], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "PATIENCE", 2)
    data = Ramp()
    data.fault = fault
    with pytest.raises(WorkerError) as caught:
        load(data, workers=2)
    assert caught.value.exit_code == 9
    assert "/dev/shm" in caught.value.hint and "trainer.workers=0" in caught.value.hint


IMAGE = Spec((1, 2, 2), classes=2)
TOKENS = Spec((3,), kind="tokens", vocab=5)
GOOD = torch.zeros(2, 1, 2, 2)
LABEL = {"label": torch.tensor([0, -1])}


@pytest.mark.parametrize(
    ("spec", "x0", "cond", "message"),
    [
        (IMAGE, GOOD[:, 0], LABEL, r"shape \(2, 2\), expected \(1, 2, 2\)"),
        (IMAGE, GOOD.double(), LABEL, "torch.float64, expected torch.float32"),
        (IMAGE, GOOD + 255, LABEL, r"from 255 to 255, expected images in \[-1, 1\]"),
        (IMAGE, GOOD - 1.01, LABEL, r"from -1.01 to -1.01, expected images in"),
        (IMAGE, GOOD + torch.nan, LABEL, "NaN or infinite"),
        (IMAGE, GOOD - torch.inf, LABEL, "NaN or infinite"),
        (IMAGE, GOOD, {}, "no labels, expected 2 classes"),
        (IMAGE, GOOD, {"label": torch.tensor([0, 2])}, r"label 2, expected classes 0"),
        (IMAGE, GOOD, {"label": torch.tensor([-2, 0])}, "label -2, expected classes"),
        (TOKENS, torch.full((2, 3), 5), {}, "int64 tokens 0 .. 4"),
        (TOKENS, torch.zeros(2, 3), {}, "torch.float32 values from 0 to 0, expected"),
    ],
)
def test_what_the_spec_does_not_promise_is_refused(
    spec: Spec, x0: Tensor, cond: dict[str, Tensor], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        loading.inspect(MicroBatch(x0, cond, torch.arange(2)), spec)


def test_what_the_spec_promises_passes() -> None:
    rows = torch.arange(2)
    loading.inspect(MicroBatch(GOOD + 1, LABEL, rows), IMAGE)
    loading.inspect(MicroBatch(torch.full((2, 3), 4), {}, rows), TOKENS)
    loading.inspect(MicroBatch(torch.full((2, 2), 3.0), {}, rows), Spec((2,)))


def test_the_first_batch_is_looked_at() -> None:
    data = Ramp()
    data.spec = Spec((2,), classes=1)
    with pytest.raises(DataError, match=r"label \d, expected classes 0 .. 0"):
        load(data)


def test_a_worker_left_behind_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[BaseException] = []
    monkeypatch.setattr(sys, "excepthook", lambda kind, error, at: told.append(error))
    monkeypatch.setattr(loading, "get_temp_dir", lambda: "")
    loading._begin(0)
    gone = (ConnectionResetError(), BrokenPipeError(), EOFError())
    for error in (*gone, OSError("disk")):
        sys.excepthook(type(error), error, None)
    assert [str(error) for error in told] == ["disk"]


def test_a_worker_has_its_folder_from_the_start_and_takes_it_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that made it at the end would make it after all was tidied up."""
    monkeypatch.delitem(current_process()._config, "tempdir", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    told = tmp_path / "told"

    def work() -> None:
        loading._begin(0)
        told.write_text("\n".join(map(str, tmp_path.glob("pymp-*"))))

    worker = get_context("fork").Process(target=work)
    worker.start()
    worker.join()
    (folder,) = told.read_text().splitlines()
    assert not Path(folder).exists()
