"""Folders and archives of images: every mode, every fault, one cache."""

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import labels, levels, opened, picture, put
from PIL import Image

from diffusion_cli.datasets import datasets, parsing
from diffusion_cli.errors import DataError
from diffusion_cli.rng import Rng

SHARED = os.environ.get("DCLI_DATA", "")
needs_cifar = pytest.mark.skipif(
    not SHARED or not Path(SHARED, "cifar10_jpeg/test.zip").is_file(),
    reason="DCLI_DATA does not name a folder with cifar10_jpeg/test.zip",
)


@pytest.fixture
def animals(tmp_path: Path) -> Path:
    """Three classes, not made in the order of their names, one nested deeper."""
    for number, name in enumerate(
        ("dog/b.png", "cat/x/a.JPG", "emu/a.webp", "cat/b.png")
    ):
        put(picture(50 * number), tmp_path / "animals" / name)
    (tmp_path / "animals/cat/notes.txt").write_text("not an image")
    put(picture(), tmp_path / "animals/.hidden/a.png")
    return tmp_path / "animals"


def zipped(folder: Path, path: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in folder.rglob("*"):
            archive.write(file, Path("outer", file.relative_to(folder)))
    return path


def test_class_folders_become_labels(animals: Path) -> None:
    data = opened(animals)
    assert data.spec.shape == (3, 4, 6)
    assert data.spec.names == ("cat", "dog", "emu") and data.spec.classes == 3
    assert labels(data) == [0, 0, 1, 2]
    found = levels(data)[:, 0, 0, 0].int() - torch.tensor([150, 50, 0, 100])
    assert found.abs().max() <= 2  # JPEG and WebP lose a little


def test_an_archive_equals_its_folder(animals: Path) -> None:
    folder, archive = opened(animals), opened(zipped(animals, animals.parent / "a.zip"))
    assert archive.spec == folder.spec and labels(archive) == labels(folder)
    assert torch.equal(levels(archive), levels(folder))


def test_flat_images_have_no_labels(tmp_path: Path) -> None:
    put(picture(), tmp_path / "set/a.png")
    data = opened(tmp_path / "set")
    assert data.spec.classes == 0
    assert data.batch(torch.tensor([0]), Rng(0, torch.tensor([0])))[1] == {}


def test_labels_can_be_left_aside(animals: Path) -> None:
    assert opened(animals, labels=False).spec.classes == 0


def test_an_image_outside_the_class_folders_is_refused(animals: Path) -> None:
    put(picture(), animals / "stray.png")
    with pytest.raises(DataError, match=r"1 of 5 .* no class folder: stray\.png"):
        opened(animals)
    assert len(opened(animals, labels=False)) == 5


def sixteen_bits() -> Image.Image:
    return Image.fromarray(np.full((4, 6), 100 * 257, np.uint16))


def palette() -> Image.Image:
    return picture().quantize(4)


MODES = {
    "L": picture(mode="L"),
    "1": Image.new("1", (6, 4), 1),
    "P": palette(),
    "LA": Image.merge("LA", (picture(100, mode="L"), picture(255, mode="L"))),
    "RGBA": Image.merge("RGBA", [picture(100, mode="L")] * 3 + [picture(0, mode="L")]),
    "I;16": sixteen_bits(),
}
WANTED = {"L": 100, "1": 255, "P": 100, "LA": 100, "RGBA": 255, "I;16": 100}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("channels", [1, 3])
def test_modes_are_converted_and_counted(
    mode: str, channels: int, tmp_path: Path
) -> None:
    put(MODES[mode], tmp_path / "set/a.png")
    data = opened(tmp_path / "set", channels=channels)
    assert data.spec.shape == (channels, 4, 6)
    assert levels(data).unique().tolist() == [WANTED[mode]]
    plain = {1: "L", 3: "RGB"}[channels]
    told = "grey" if plain == "L" else plain
    expected = () if mode == plain else (f"converted 1 {mode} to {told}",)
    assert data.notes == expected


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    cyan = Image.new("CMYK", (6, 4), (255, 0, 0, 0))
    put(cyan, tmp_path / "set/a.jpg", quality=100)
    data = opened(tmp_path / "set")
    assert data.notes == ("converted 1 CMYK to RGB",)
    assert levels(data)[0, :, 0, 0].tolist() == [0, 255, 255]


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    image = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6) * 10)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    put(image, tmp_path / "set/a.png", exif=exif)
    data = opened(tmp_path / "set", channels=1)
    turned = np.rot90(np.asarray(image), -1)
    assert np.array_equal(levels(data)[0, 0].numpy(), turned)


def test_sizes_are_shown_and_never_stretched(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    for number, size in enumerate(((6, 4), (6, 4), (9, 4), (3, 3))):
        put(picture(size=size), folder / f"{number}.png")
    with pytest.raises(DataError) as caught:
        opened(folder)
    sizes = "there are 6x4 (2), 9x4 (1), 3x3 (1)"
    refusal = f"{folder}: 2 of 4 images do not have the size 6x4: {sizes}"
    assert caught.value.message == refusal
    assert caught.value.hint == "dataset.size=4 dataset.fit=resize"
    with pytest.raises(DataError, match="1 of 4 images are smaller than 4x4"):
        opened(folder, size=4, fit="crop")
    assert opened(folder, size=4, fit="resize").spec.shape == (3, 4, 4)
    assert not [n for n in os.listdir(tmp_path / "cache") if "part" in n]


def test_crop_and_resize_keep_the_centre(tmp_path: Path) -> None:
    columns = np.zeros((4, 12), np.uint8)
    columns[:, 4:8] = 200
    put(Image.fromarray(columns), tmp_path / "set/a.png")
    crop = opened(tmp_path / "set", size=4, fit="crop", channels=1)
    assert levels(crop).unique().tolist() == [200]
    resize = opened(tmp_path / "set", size=2, fit="resize", channels=1)
    assert levels(resize).shape == (1, 1, 2, 2) and levels(resize).min() > 150


def test_odd_names_and_loops_do_no_harm(tmp_path: Path) -> None:
    folder = tmp_path / "my set"
    put(picture(), folder / "b b" / "ü.png")
    put(picture(), folder / "a\na" / "x.png")
    (folder / os.fsdecode(b"\xff")).mkdir()
    put(picture(), folder / os.fsdecode(b"\xff") / "x.png")
    (folder / "loop").symlink_to(folder)
    data = opened(folder)
    assert data.spec.names == (r"a\na", "b b", r"\udcff") and labels(data) == [0, 1, 2]


def test_the_cache_notices_every_change(animals: Path) -> None:
    def entries() -> int:
        return len([n for n in os.listdir(animals.parent / "cache") if "lock" not in n])

    first = opened(animals).fingerprint
    assert opened(animals).fingerprint == first and entries() == 1
    os.utime(animals / "dog/b.png", ns=(1, 1))
    assert opened(animals).fingerprint != first and entries() == 2
    put(picture(), animals / "dog/c.png")
    assert len(opened(animals)) == 5 and entries() == 3
    assert opened(animals, channels=1).spec.shape[0] == 1 and entries() == 4


def test_threads_and_blocks_keep_the_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(40):
        put(picture(number, mode="L"), tmp_path / f"set/{number:02d}.png")
    monkeypatch.setattr(parsing, "HEAVY", 0)
    monkeypatch.setattr(parsing, "BLOCK", 1)
    assert levels(opened(tmp_path / "set"))[:, 0, 0, 0].tolist() == list(range(40))


def test_labels_stay_with_their_images_when_others_are_skipped(animals: Path) -> None:
    (animals / "cat/aa.png").write_bytes(b"")
    (animals / "dog/c.png").write_bytes(b"")
    data = opened(animals, bad="skip")
    assert labels(data) == [0, 0, 1, 2]


@needs_cifar
def test_cifar_as_an_archive(tmp_path: Path) -> None:
    path = Path(SHARED, "cifar10_jpeg/test.zip")
    data = datasets["image_folder"](path=str(path), cache=str(tmp_path))
    data.prepare()
    assert data.spec.shape == (3, 32, 32)
    assert data.spec.names[:2] == ("airplane", "automobile")
    assert torch.tensor(labels(data)).bincount().tolist() == [1000] * 10
    assert 0.4 < levels(data).double().mean() / 255 < 0.55  # 0.48 for CIFAR-10
