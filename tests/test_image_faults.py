"""Broken, missing and malicious image files: exit 3, counted and named."""

import io
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from pictures import opened, picture, put
from PIL import Image

from diffusion_cli.errors import DataError


def chunk(kind: bytes, body: bytes) -> bytes:
    return (
        struct.pack(">I", len(body))
        + kind
        + body
        + struct.pack(">I", zlib.crc32(kind + body))
    )


def bomb() -> bytes:
    """A PNG whose header promises 30,000 x 30,000 pixels."""
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(100))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data)


def broken() -> dict[str, bytes]:
    stream = io.BytesIO()
    Image.fromarray(
        np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    ).save(stream, "PNG")
    whole = stream.getvalue()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 255
    return {
        "bomb.png": bomb(),
        "empty.png": b"",
        "flipped.png": bytes(flipped),
        "text.png": b"hello, this is no picture",
        "truncated.png": whole[: len(whole) // 2],
    }


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_broken_files_are_counted_and_named(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    put(picture(), folder / "good.png")
    put(picture(), folder / "great.png")
    for name, content in broken().items():
        (folder / name).write_bytes(content)
    (folder / "zz.png").symlink_to("nowhere")
    with pytest.raises(DataError) as caught:
        opened(folder)
    lines = caught.value.message.splitlines()
    assert lines[0] == f"{folder}: 6 of 8 images cannot be decoded"
    assert [line.split(":")[0].strip() for line in lines[1:6]] == sorted(broken())
    assert lines[6] == "  ... and 1 more"
    assert caught.value.hint.endswith("dataset.bad=skip dataset.bad_limit=6")
    with pytest.raises(DataError, match="6 of 8"):
        opened(folder, bad="skip", bad_limit=5)
    data = opened(folder, bad="skip", bad_limit=6)
    assert len(data) == 2 and "skipped 6 broken images" in data.notes[-1]


def test_nothing_but_broken_files_is_refused_even_when_skipping(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set/a.png").write_bytes(b"")
    with pytest.raises(DataError, match="1 of 1 images cannot be decoded"):
        opened(tmp_path / "set", bad="skip")


def test_a_missing_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing does not exist"):
        opened(tmp_path / "nothing")


def test_a_folder_without_images_shows_what_it_has(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    with pytest.raises(DataError, match=r"\.jpeg, \.webp\); no files at all"):
        opened(tmp_path / "set")
    for number in range(4):
        (tmp_path / f"set/{number}.tiff").touch()
    with pytest.raises(DataError, match=r"such as 0\.tiff, 1\.tiff, 2\.tiff$"):
        opened(tmp_path / "set")


def test_an_archive_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"PK\x03\x04 not really")
    with pytest.raises(DataError, match="not a readable"):
        opened(tmp_path / "a.zip")


@pytest.mark.parametrize("name", ["../evil.png", "/etc/evil.png", "a/../../evil.png"])
def test_a_member_that_leaves_the_archive_is_refused(name: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(name, b"")
    with pytest.raises(DataError, match="points outside the archive"):
        opened(tmp_path / "a.zip")


def test_a_member_that_unpacks_to_too_much_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffusion_cli.datasets.sources.LARGEST", 2**20)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(2**20 + 1))
    with pytest.raises(DataError, match="unpacks to 1048577 bytes"):
        opened(tmp_path / "a.zip")
