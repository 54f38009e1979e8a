"""Checkpoints somebody else wrote, or a disk has spoilt: refused, and harmless."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
from stored import save, spoil

from diffusion_cli import artifact, checkpoint
from diffusion_cli.errors import CheckpointError


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refused(folder: Path, what: str) -> CheckpointError:
    with pytest.raises(CheckpointError, match=what) as caught:
        checkpoint.load(folder).weights()
    assert caught.value.exit_code == 4 and caught.value.hint
    return caught.value


@pytest.mark.parametrize("how", ["empty", "byte", "half", "longer", "flipped"])
def test_a_damaged_file_is_refused(tmp_path: Path, how: str) -> None:
    path = save(tmp_path)
    file = path / "model.safetensors"
    if how == "longer":
        file.write_bytes(file.read_bytes() + b"x")
    else:
        spoil(file, how)
    what = {"longer": "too long: expected", "flipped": "sha256 mismatch"}
    error = refused(path, what.get(how, "truncated: expected"))
    assert error.code == "CKPT-CORRUPT" and "model.safetensors" in error.message


def test_no_file_is_read_before_all_have_their_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path)
    spoil(path / "state.json", "half")
    monkeypatch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("read"))
    refused(path, "state.json truncated")


def test_hashing_begins_with_the_largest_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that threads end together: one file is one thread's."""
    path, digest, seen = tmp_path / "x", hashlib.file_digest, list[int]()
    sizes = {"a": 10, "b": 30, "c": 20}
    artifact.write(path, {n: lambda n=n: [bytes(sizes[n])] for n in sizes}, {})  # type: ignore[misc]

    def known(file: Any, kind: str) -> Any:
        seen.append(os.fstat(file.fileno()).st_size)
        return digest(file, kind)

    monkeypatch.setattr(hashlib, "file_digest", known)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    artifact.verify(path)
    assert seen == [30, 20, 10]


@pytest.mark.parametrize("name", ["manifest.json", "model.safetensors", "state.json"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    path = save(tmp_path)
    (path / name).unlink()
    refused(path, f"{name} is missing")


def test_a_pickle_is_never_read(tmp_path: Path) -> None:
    bomb, mark = tmp_path / "model.pt", tmp_path / "mark"

    class Bomb:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {mark}",)

    bomb.write_bytes(pickle.dumps(Bomb()))
    assert refused(bomb, "pickles are never read").code == "CKPT-UNSAFE"
    path = save(tmp_path / "run")
    shutil.copy(bomb, path / "model.safetensors")
    refused(path, "model.safetensors")
    assert not mark.exists()


def entry(path: Path) -> dict[str, Any]:
    from hashlib import sha256

    data = path.read_bytes()
    return {"size": len(data), "sha256": sha256(data).hexdigest()}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x01",
        struct.pack("<Q", 2**62) + b"{}",
        struct.pack("<Q", 8) + b"not json",
        struct.pack("<Q", 60)
        + b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,99999]}}  ',
    ],
)
def test_a_hostile_weights_file_is_refused(tmp_path: Path, data: bytes) -> None:
    """Fault S6: its hash is right: whoever wrote it wrote the manifest too."""
    path = save(tmp_path)
    file = path / "model.safetensors"
    file.write_bytes(data)
    files = json.loads((path / "manifest.json").read_text())["files"]
    edit(path, files=files | {file.name: entry(file)})
    refused(path, "model.safetensors")


@pytest.mark.parametrize(
    "name", ["../../x", "/etc/passwd", ".hidden", "a\0b", "", "a" * 256]
)
def test_a_member_stays_inside(tmp_path: Path, name: str) -> None:
    """Fault S5."""
    path = save(tmp_path)
    edit(path, files={name: {"size": 0, "sha256": ""}})
    refused(path, "is not a file name")
    assert not artifact.standing(path)


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    """Fault S5."""
    path = save(tmp_path)
    file = path / "model.safetensors"
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    refused(path, "model.safetensors is missing")


@pytest.mark.parametrize(
    "text", ["", "[]", "{", "[" * 100_000, '{"files": ' + "[" * 40 + "]" * 40 + "}"]
)
def test_a_hostile_manifest_is_refused(tmp_path: Path, text: str) -> None:
    """Fault S6."""
    path = save(tmp_path)
    (path / "manifest.json").write_text(text)
    refused(path, "manifest.json is not")


def test_a_huge_manifest_is_not_parsed(tmp_path: Path) -> None:
    """Fault S6."""
    path = save(tmp_path)
    (path / "manifest.json").write_text(" " * (9 << 20))
    refused(path, "larger than 8 MB")


@pytest.mark.parametrize("key", ["step", "config", "data"])
def test_a_manifest_that_lacks_something_is_refused(tmp_path: Path, key: str) -> None:
    path = save(tmp_path)
    edit(path, **{key: None})
    refused(path, "manifest.json lacks")


def test_a_newer_format_asks_for_an_upgrade(tmp_path: Path) -> None:
    path = save(tmp_path)
    edit(path, format=3)
    refused(path, "format 3 > supported 1; upgrade dcli")
