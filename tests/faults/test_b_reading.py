"""Table B: checkpoints that are damaged, strange or not what is asked for."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from harness import SAMPLE, TRAIN, Place, control, controls, place, says, trained
from safetensors.torch import load_file, save_file
from tiny import outcome

from diffusion_cli.device import precision

__all__ = ["controls", "place"]  # fixtures
pytestmark = pytest.mark.fault

LEGACY = Path(__file__).parents[1] / "legacy"
HALF = "trainer.steps=8"  # checkpoints 4 and 8
NEWEST = "run/checkpoints/step_00000008"
AGAIN = tuple(TRAIN)
DRAW = tuple(SAMPLE)
OWN = precision(torch.device("cpu"), "auto")  # of a run here, and another
OTHER = "fp32" if OWN == "bf16" else "bf16"


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a manifest by the hand of somebody who keeps its hashes right."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    for name in manifest["files"]:
        data = (folder / name).read_bytes()
        entry = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        manifest["files"][name] = entry
    path.write_text(json.dumps(manifest))


def each(act: Callable[[Path], Any], member: str = "model.safetensors") -> Any:
    def on_all(there: Place) -> None:
        for folder in (there.run / "checkpoints").glob("step_*"):
            act(folder / member)

    return on_all


def last(act: Callable[[Path], Any], member: str = "model.safetensors") -> Any:
    return lambda there: act(there.work / NEWEST / member)


def rewritten(change: Callable[[dict[str, Any]], Any]) -> Any:
    return lambda there: edit(there.work / NEWEST, change)


def in_bf16(there: Place) -> None:
    """The model of a checkpoint, stored in half the bytes."""
    path = there.work / NEWEST / "model.safetensors"
    whole = {name: t.to(torch.bfloat16) for name, t in load_file(path).items()}
    save_file(whole, path)
    edit(path.parent, lambda manifest: None)


class Bomb:
    def __reduce__(self) -> Any:
        return os.system, ("touch exploded",)


def pickled(name: str) -> Any:
    def put(there: Place) -> None:
        there.file(name, "")
        (there.work / name).write_bytes(pickle.dumps(Bomb()))

    return put


def bomb_inside(there: Place) -> None:
    """A pickle under the name of the weights, with the right hash."""
    (there.work / NEWEST / "model.safetensors").write_bytes(pickle.dumps(Bomb()))
    edit(there.work / NEWEST, lambda manifest: None)


def diffusers(there: Place) -> None:
    there.file("theirs/model_index.json", '{"_class_name": "DDPMPipeline"}')
    there.file("theirs/unet/diffusion_pytorch_model.safetensors", "")


def golden(there: Place) -> None:
    """A checkpoint that a released version wrote."""
    shutil.copytree(LEGACY / "format-1", there.work / "run-old")
    there.own.add("run-old")


def nothing(there: Place) -> None:
    """The run as it is."""


def set_config(key: str, name: str, value: Any) -> Any:
    return rewritten(lambda manifest: manifest["config"][key].update({name: value}))


class Row(NamedTuple):
    """What is done to a run of 8 steps, a command, and how it ends."""

    name: str
    words: tuple[str, ...]
    code: int
    says: str
    spoil: Callable[[Place], Any] = nothing


CORRUPT = r"error\[CKPT-CORRUPT\]: .*"
SHORT = r"truncated: expected \d+ bytes, have "
STEP = (*DRAW, f"ckpt={NEWEST}")
ROWS = [
    Row("B1-flip", AGAIN, 0, "sha256 mismatch; falling back", last(flip)),
    Row("B1-cut", AGAIN, 0, SHORT + r"\d+; falling back", last(lambda p: cut(p, 900))),
    Row("B1-ema", AGAIN, 0, "ema-4.safetensors: sha256 mismatch",
        last(flip, "ema-4.safetensors")),
    Row("B1-state", AGAIN, 0, "state.json: sha256 mismatch", last(flip, "state.json")),
    Row("B2", AGAIN, 4, CORRUPT + "every checkpoint is damaged: .*step_00000008.*"
        r"step_00000004.*\nhint: dcli train ... fresh=true", each(flip)),
    Row("B3", STEP, 4, CORRUPT + "model.safetensors: sha256 mismatch", last(flip)),
    Row("B4-0", STEP, 4, CORRUPT + SHORT + "0", last(lambda p: cut(p, 0))),
    Row("B4-1", STEP, 4, CORRUPT + SHORT + "1", last(lambda p: cut(p, 1))),
    Row("B4-half", STEP, 4, CORRUPT + SHORT + "5000", last(lambda p: cut(p, 5000))),
    Row("B6", (*DRAW, "ckpt=bomb.pt"), 4, r"error\[CKPT-UNSAFE\]", pickled("bomb.pt")),
    Row("B6-inside", STEP, 4, "model.safetensors", bomb_inside),
    Row("B9-manifest", STEP, 4, "manifest.json is missing",
        last(Path.unlink, "manifest.json")),
    Row("B9-member", STEP, 4, "model.safetensors is missing", last(Path.unlink)),
    Row("B9-auto", AGAIN, 0, "manifest.json is missing; falling back",
        last(Path.unlink, "manifest.json")),
    Row("B10-run", DRAW, 0, "step_00000008", nothing),
    Row("B10-best", DRAW, 0, "falling back", last(flip)),
    Row("B10-missing", (*DRAW, "ckpt=runs/nowhere"), 4, r"error\[CKPT-MISSING\]"),
    Row("B10-near", (*DRAW, "ckpt=run/checkpoints/step_00000007"), 4, "step_00000008"),
    Row("B10-glob", (*DRAW, "ckpt='ru*'"), 4, r"error\[CKPT-MISSING\]"),
    Row("B11", STEP, 4, r"format 3 > supported 1; upgrade dcli",
        rewritten(lambda manifest: manifest.update(format=3))),
    Row("B12", (*DRAW, "ckpt=run-old"), 0, "10 samples", golden),
    Row("B13", STEP, 4, r"error\[CKPT-MISMATCH\](.|\n)*\(16,.*in the checkpoint.*\(32,",
        set_config("network", "width", 32)),
    Row("B13-keys", STEP, 4, r"error\[CKPT-MISMATCH\](.|\n)*missing",
        set_config("network", "depth", 2)),
    Row("B14-log", (*AGAIN, "every.log=1", "every.save=5"), 0, "resuming"),
    Row("B14-lr", (*AGAIN, "optimizer.lr=0.5"), 2, r"optimizer.lr: 0.0002 -> 0.5"),
    Row("B14-model", (*AGAIN, "network.width=8"), 2, r"network.width: 16 -> 8"),
    Row("B14-data", (*AGAIN, "dataset.size=50"), 2, r"dataset.size: 100 -> 50"),
    Row("B15-file", STEP, 4, "ema-4.safetensors is missing",
        last(Path.unlink, "ema-4.safetensors")),
    Row("B15-none", (*STEP, "weights=ema-9"), 4, "hint: weights=raw"),
    Row("B15-changed", (*AGAIN, "trainer.ema=[5]"), 2, r"trainer.ema: \[4.*-> \[5"),
    Row("B16", (*AGAIN, f"trainer.precision={OTHER}"), 2,
        f"trainer.precision: '{OWN}' -> '{OTHER}'"),
    Row("B17", STEP, 0, "10 samples", in_bf16),
    Row("B18-diffusers", (*DRAW, "ckpt=theirs"), 4, "manifest.json", diffusers),
    Row("B18-edm", (*DRAW, "ckpt=edm.pkl"), 4, "pickles are never", pickled("edm.pkl")),
    Row("B18-lightning", (*DRAW, "ckpt=x.ckpt"), 4, "CKPT-UNSAFE", pickled("x.ckpt")),
]  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_reading(row: Row, place: Place) -> None:
    place.put(trained(HALF))
    row.spoil(place)
    before = {p: p.read_bytes() for p in place.work.rglob("*.safetensors")}
    told = place.dcli(*row.words)
    assert told.code == row.code, told.err
    says(told, row.says)
    assert not (place.work / "exploded").exists()
    assert "weights_only" not in told.err
    if row.words[0] == "train" and told.code == 0:
        assert outcome(place.run) == control()
    if "falling back" in told.err and row.words == AGAIN:
        assert (place.work / NEWEST).with_name(".bad-step_00000008").is_dir()
    if told.code:  # nothing was lost, nothing begun
        kept = {re.sub(r"\.bad-", "", str(p)): p.read_bytes()
                for p in place.work.rglob("*.safetensors")}  # fmt: skip
        assert kept == {str(p): data for p, data in before.items()}
