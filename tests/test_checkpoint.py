"""Checkpoints: exact, whole or absent, and harmless whoever wrote them."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from stored import ABOUT, SPEC, net, save, spoil
from torch import nn

from diffusion_cli import checkpoint, failpoints
from diffusion_cli.errors import CheckpointError, StorageError
from diffusion_cli.settings import Keep


@pytest.fixture(autouse=True)
def disarm() -> Iterator[None]:
    yield
    failpoints.arm(None)


def test_round_trip(tmp_path: Path) -> None:
    tensors = {
        "scalar": torch.tensor(1 / 3, dtype=torch.float64),
        "half": torch.randn(3, 5, generator=torch.Generator()).to(torch.bfloat16),
        "empty": torch.empty(0, 4),
        "strided": torch.arange(12).reshape(3, 4).T,
        "bits": torch.tensor([True, False]),
    }
    path = checkpoint.save(tmp_path, 7, {"model": tensors}, {"x": 1 / 3}, ABOUT)
    found = checkpoint.load(path)
    assert (found.step, found.spec, found.config) == (7, SPEC, {"seed": 0})
    assert found.plain() == {"x": 1 / 3} and found.tensors("absent") == {}
    for again in (found.tensors("model"), load_file(path / "model.safetensors")):
        assert again.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert again[name].dtype == tensor.dtype
            assert torch.equal(again[name], tensor)


def test_the_average_replaces_the_weights(tmp_path: Path) -> None:
    found = checkpoint.load(save(tmp_path))
    for which, seed in (("raw", 0), ("ema", 1), ("ema-5", 1)):
        module = net(seed=9)
        found.load_model(module, which)
        assert all(map(torch.equal, module.parameters(), net(seed=seed).parameters()))
    with pytest.raises(CheckpointError, match="no weights `ema-6`, but raw, ema-5"):
        found.weights("ema-6")


def test_the_hash_follows_the_weights(tmp_path: Path) -> None:
    hashes = [
        checkpoint.load(save(tmp_path / name, step, seed)).hash
        for name, step, seed in (("a", 1, 0), ("b", 2, 0), ("c", 1, 5))
    ]
    assert hashes[0] == hashes[1] != hashes[2]


def test_another_network_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"0\.weight: \(4, 3\) in the checkp"
    ) as c:
        checkpoint.load(save(tmp_path)).load_model(net(width=5))
    assert "(5, 3) in the model" in c.value.message and c.value.code == "CKPT-MISMATCH"


def test_init_takes_what_has_the_same_name(tmp_path: Path) -> None:
    found = checkpoint.load(save(tmp_path))
    larger = nn.Sequential(*net(seed=9), nn.Linear(2, 2))
    unused, fresh = found.init_model(larger)
    assert unused == [] and fresh == ["2.bias", "2.weight"]
    assert torch.equal(larger[0].weight, net(seed=1)[0].weight)
    with pytest.raises(CheckpointError, match="the model differs"):
        found.init_model(net(width=5))


def test_only_the_newest_and_the_multiples_stay(tmp_path: Path) -> None:
    for step in range(1, 8):
        save(tmp_path, step)
        checkpoint.prune(tmp_path, Keep(keep=2, keep_every=3))
    left = [int(path.name[5:]) for path in checkpoint.steps(tmp_path)]
    assert left == [7, 6, 3] and len(list(tmp_path.iterdir())) == 3
    checkpoint.prune(tmp_path, Keep(keep=0))
    assert len(checkpoint.steps(tmp_path)) == 3


def test_an_incomplete_folder_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "step_00000001").mkdir(parents=True)
    assert checkpoint.load(save(tmp_path)).step == 1
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]


def test_a_resume_falls_back_and_keeps_the_evidence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 1)
    spoil(save(tmp_path, 2) / "model.safetensors", "flipped")
    found = checkpoint.newest(tmp_path, aside=True)
    assert found is not None and found.step == 1
    assert "sha256 mismatch; falling back" in caplog.text
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [".bad-step_00000002", "step_00000001"]


def test_nothing_starts_over_by_itself(tmp_path: Path) -> None:
    for step in (1, 2):
        spoil(save(tmp_path, step) / "model.safetensors", "half")
    for _ in range(2):  # the second time they are set aside already
        with pytest.raises(
            CheckpointError, match="every checkpoint is damaged"
        ) as caught:
            checkpoint.newest(tmp_path, aside=True)
        assert "step_00000001" in caught.value.message and "fresh" in caught.value.hint
    assert checkpoint.newest(tmp_path / "none") is None


def test_a_run_is_found_by_the_beginning_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("digits-a1", "digits-b2", "moons-c3"):
        save(Path("runs") / name / "checkpoints")
    assert checkpoint.load("moons").folder.parent.parent.name == "moons-c3"
    Path("moons").mkdir()  # a folder of that name which is no run changes nothing
    assert checkpoint.load("moons").folder.parent.parent.name == "moons-c3"
    assert checkpoint.load("runs/digits-a").step == 1
    for name in ("rings-flow-00000001", "rings-00000002"):
        save(Path("runs") / name / "checkpoints")
    assert checkpoint.load("rings").folder.parent.parent.name == "rings-00000002"
    assert checkpoint.load("runs/digits-b2").step == 1
    for name, step in (("b2", 7), ("a1", 9)):
        about = {"status": "complete", "step": step, "host": "elsewhere"}
        place = Path("runs") / f"digits-{name}"
        (place / "status.json").write_text(json.dumps(about))
        (place / "overrides.yaml").write_text(f"[+exp=digits, seed={step}]")
        os.utime(place / "status.json", (time.time() - 7200 + step,) * 2)
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load("digits")
    assert caught.value.message == (
        "ckpt: `digits` could be one of 2 runs\n"
        "  digits-b2  step 7  2 h ago  seed=7\n"
        "  digits-a1  step 9  2 h ago  seed=9"
    )
    assert caught.value.hint == "ckpt=runs/digits-a1"
    told = rf"no `runs/mons-c3` in {tmp_path}; nearest: runs/moons-c3"
    with pytest.raises(CheckpointError, match=told) as caught:
        checkpoint.load("runs/mons-c3")
    assert caught.value.hint == "dcli runs ls"


def test_a_folder_without_runs_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load("digits")
    assert caught.value.message == f"ckpt: there is no `digits` in {tmp_path} nor a run"
    assert caught.value.hint == "cd to where runs lies, or ckpt=<path of a run>"
    with pytest.raises(CheckpointError, match=r"there is no `/no/digits`$"):
        checkpoint.load("/no/digits")


def test_the_folder_of_checkpoints_is_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2):
        save(tmp_path / "run" / "checkpoints", step)
    assert checkpoint.load(tmp_path / "run" / "checkpoints").step == 2
    monkeypatch.chdir(tmp_path / "run")
    assert checkpoint.load("checkpoints").step == 2


@pytest.mark.parametrize(
    "fault",
    ["ckpt.write:model.safetensors@40:enospc", "ckpt.fsync:enospc"],
)
def test_a_full_disk_leaves_the_previous_one(tmp_path: Path, fault: str) -> None:
    save(tmp_path, 1)
    failpoints.arm(fault)
    with pytest.raises(StorageError, match="No space left") as caught:
        save(tmp_path, 2)
    assert caught.value.exit_code == 6 and caught.value.code == "DISK-FULL"
    assert "MB free, older checkpoints here: 1" in caught.value.message
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]
    assert checkpoint.load(tmp_path / "step_00000001").step == 1


def failing(number: int, times: int) -> Any:
    """An `os.fsync` that fails a few times."""
    left = [times]
    real = os.fsync

    def fsync(handle: int) -> None:
        left[0] -= 1
        if left[0] >= 0:
            raise OSError(number, os.strerror(number))
        real(handle)

    return fsync


@pytest.mark.parametrize("number", [errno.EIO, errno.EDQUOT])
def test_a_passing_fault_is_tried_again(
    tmp_path: Path,
    number: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(os, "fsync", failing(number, 1))
    assert checkpoint.load(save(tmp_path)).step == 1
    assert "retry 1/3" in caplog.text


def test_a_lasting_fault_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 1)
    monkeypatch.setattr(os, "fsync", failing(errno.EIO, 99))
    with pytest.raises(StorageError, match="EIO") as caught:
        save(tmp_path, 2)
    assert caught.value.code == "IO" and "retry 3/3" in caplog.text
    assert checkpoint.load(tmp_path / "step_00000001").step == 1


def test_other_filesystems_are_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def replace(*args: Any) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(StorageError, match="different filesystems"):
        save(tmp_path)


def test_leftovers_are_removed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path)
    (tmp_path / ".tmp-step_00000002").mkdir()
    checkpoint.clean(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]
    assert ".tmp-step_00000002" in caplog.text
