"""Laws of every data set, and the files and pictures that samples become."""

import os
import sys
from multiprocessing import get_context
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion_cli.core import Spec
from diffusion_cli.datasets import Dataset, datasets
from diffusion_cli.datasets import images as images_module
from diffusion_cli.datasets.images import Images, image_spec
from diffusion_cli.datasets.storage import build_once, staged
from diffusion_cli.datasets.tables import Table, read_table, write_table
from diffusion_cli.datasets.toy2d import Shape
from diffusion_cli.errors import DataError, StorageError
from diffusion_cli.rng import Rng

CPU = torch.device("cpu")
SHARED = os.environ.get("DCLI_DATA", "")
needs_mnist = pytest.mark.skipif(
    not Path(SHARED, "MNIST/raw").is_dir() or not SHARED,
    reason="DCLI_DATA does not name a folder with MNIST/raw",
)


def ready(name: str, **values: Any) -> Dataset:
    data = datasets[name](**values)
    data.prepare()
    return data


def rng(count: int, seed: int = 0) -> Rng:
    return Rng(seed, torch.arange(count))


class Noise(Images):
    """Random levels: every one of them occurs."""

    def __init__(self, flip: bool = False, count: int = 50) -> None:
        super().__init__(flip)
        self.count = count
        self.spec = image_spec((3, 4, 6), ("a", "b"))

    def read(self) -> Table:
        draws = Rng(1, torch.arange(self.count))
        levels = draws.integers(256, (self.count, 3, 4, 6)).to(torch.uint8)
        return Table(levels.numpy(), np.arange(self.count) % 2)


EMBEDDED = [("digits", {}), *(("toy2d", {"shape": s}) for s in get_args(Shape))]


@pytest.mark.parametrize(("name", "values"), EMBEDDED)
def test_samples_are_what_the_spec_says(name: str, values: dict[str, Any]) -> None:
    data = ready(name, **values)
    index = torch.tensor([0, 5, len(data) - 1, 5])
    x0, cond = data.batch(index, rng(4))
    assert x0.shape == (4, *data.spec.shape) and x0.dtype == torch.float32
    assert torch.equal(x0[1], x0[3])
    assert set(cond) == ({"label"} if data.spec.classes else set())
    assert data.to(CPU)
    assert torch.equal(data.batch(index, rng(4))[0], x0)


@pytest.mark.parametrize(
    "name", ["digits", "toy2d", "mnist", "fashion_mnist", "cifar10"]
)
def test_the_spec_is_known_before_any_data_is_read(name: str) -> None:
    spec = datasets[name](labels=True).spec
    assert spec.classes == len(spec.names) > 0
    assert Spec.parse(spec.plain()) == spec
    for wrong in ({"classes": "x"}, {"extra": -1}, {"codec": 5}, {"vocab": 1.5}):
        with pytest.raises((TypeError, ValueError)):
            Spec.parse(spec.plain() | wrong)
    assert datasets[name](labels=False).spec.classes == 0


def test_digits_are_the_real_ones() -> None:
    from sklearn.datasets import load_digits

    real = load_digits()
    x0, cond = (data := ready("digits")).batch(torch.arange(1797), rng(1797))
    assert len(data) == 1797
    assert torch.equal(x0[:, 0], torch.from_numpy(real.images).float() / 8 - 1)
    assert torch.equal(cond["label"], torch.from_numpy(real.target))


def test_eight_gaussians_have_their_radius_and_spread() -> None:
    data = ready("toy2d", size=20_000, labels=True)
    x0, cond = data.batch(torch.arange(len(data)), rng(len(data)))
    assert cond["label"].bincount().float().std() < 4 * (20_000 / 8) ** 0.5
    for part in range(8):
        cloud = x0[cond["label"] == part].double()
        angle = torch.tensor(part * torch.pi / 4).double()
        centre = 1.3 * torch.stack((angle.cos(), angle.sin()))
        error = 5 * 0.1 / len(cloud) ** 0.5
        assert (cloud.mean(0) - centre).abs().max() < error
        assert (cloud.std(0) - 0.1).abs().max() < error


@pytest.mark.parametrize("shape", get_args(Shape))
def test_toys_are_centred_and_of_about_unit_size(shape: Shape) -> None:
    data = ready("toy2d", shape=shape, size=20_000)
    x0, _ = data.batch(torch.arange(len(data)), rng(len(data)))
    assert x0.mean(0).abs().max() < 0.05
    assert 0.3 < x0.var(0).min() and x0.var(0).max() < 1.6


def test_a_toy_sample_depends_on_seed_and_index_alone() -> None:
    small, large = ready("toy2d", size=10), ready("toy2d", size=1000)
    other = ready("toy2d", size=10, seed=1)
    index = torch.arange(10)
    assert torch.equal(small.batch(index, rng(10))[0], large.batch(index, rng(10))[0])
    assert not torch.equal(
        small.batch(index, rng(10))[0], other.batch(index, rng(10))[0]
    )


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("toy2d", {"size": 0}, "size: must be >= 1, got 0"),
        ("toy2d", {"shape": "swiss_roll", "labels": True}, "labels: must be false for"),
        (
            "image_folder",
            {"path": "x", "size": 0},
            "size: must be >= 1, or null",
        ),
        ("image_folder", {"path": "x", "fit": "crop"}, "fit: must be exact where size"),
        ("image_folder", {"path": "x", "bad_limit": -1}, "bad_limit: must be >= 0"),
    ],
)
def test_ranges_are_refused(name: str, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        datasets[name](**values)


def test_flips_are_fair_and_equal_wherever_the_data_lives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain, lazy, resident = Noise(), Noise(flip=True), Noise(flip=True)
    for data in (plain, lazy, resident):
        data.prepare()
    assert resident.to(CPU) and resident.to(CPU)
    index = torch.arange(400) % 50
    x0, cond = lazy.batch(index, rng(400))
    upright, _ = plain.batch(index, rng(400))
    turned = (x0 == upright.flip(-1)).flatten(1).all(1)
    assert torch.equal(turned, ~(x0 == upright).flatten(1).all(1))
    assert 160 < turned.sum() < 240  # four standard deviations
    assert len(resident._pixels) == 100, "moved twice, mirrored once"
    assert torch.equal(resident.batch(index, rng(400))[0], x0)
    assert torch.equal(resident.batch(index, rng(400))[1]["label"], cond["label"])
    monkeypatch.setattr(images_module, "RESIDENT", 50 * 72 * 2 - 1)
    assert not lazy.to(CPU) and plain.to(CPU)


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_saved_images_hold_every_level(levels: int, tmp_path: Path) -> None:
    top = levels - 1
    level = torch.arange(levels).float()
    x0 = (level / (top / 2) - 1).expand(2, 3, 1, levels)
    Images.save(x0, image_spec((3, 1, levels), (), levels), tmp_path, 7)
    assert sorted(os.listdir(tmp_path)) == ["000007.png", "000008.png"]
    read = np.asarray(Image.open(tmp_path / "000008.png"))
    assert np.array_equal(read[0, :, 1], np.round(np.arange(levels) * 255 / top))


def test_digits_come_back_from_their_files(tmp_path: Path) -> None:
    data = ready("digits")
    x0, _ = data.batch(torch.arange(3), rng(3))
    type(data).save(x0 + 0.05, data.spec, tmp_path, 0)  # less than half a level off
    read = np.asarray(Image.open(tmp_path / "000002.png"), np.float32)
    assert read.shape == (8, 8)
    assert np.array_equal(np.round(read / 255 * 16) / 8 - 1, x0[2, 0].numpy())


def test_a_grid_shows_every_image_enlarged() -> None:
    spec = image_spec((1, 8, 8), (), 17)
    x = torch.linspace(-1, 1, 5).view(5, 1, 1, 1).expand(5, 1, 8, 8)
    picture = Images.picture(x, spec)
    assert picture.dtype == torch.uint8 and picture.shape == (3, 2 * 34 + 2, 3 * 34 + 2)
    assert [int(picture[0, 20, 20 + 34 * i]) for i in range(3)] == [0, 64, 128]
    assert [int(picture[0, 54, 20 + 34 * i]) for i in range(2)] == [191, 255]


def test_points_become_a_table_and_a_plot(tmp_path: Path) -> None:
    data = ready("toy2d", size=500)
    x0, _ = data.batch(torch.arange(500), rng(500))
    type(data).save(x0, data.spec, tmp_path, 64)
    read = np.loadtxt(tmp_path / "000064.csv", delimiter=",", skiprows=1)
    assert np.array_equal(read.astype(np.float32), x0.numpy())
    picture = type(data).picture(x0, data.spec)
    assert picture.dtype == torch.uint8 and picture.shape[0] == 3
    assert (picture != 255).any() and torch.equal(
        picture, type(data).picture(x0, data.spec)
    )


def test_a_file_is_whole_or_absent(tmp_path: Path) -> None:
    def interrupt(path: Path) -> None:
        with staged(path) as part:
            part.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupt(tmp_path / "x.png")
    assert os.listdir(tmp_path) == []


def _build(folder: str) -> int:
    def build(part: Path) -> None:
        with Path(folder, "log").open("a") as log:
            log.write("built\n")
        (part / "a").write_text("whole")

    return len((build_once(Path(folder, "entry"), build) / "a").read_text())


def test_many_processes_build_once(tmp_path: Path) -> None:
    with get_context("fork").Pool(4) as pool:
        assert pool.map(_build, [str(tmp_path)] * 8) == [5] * 8
    assert (tmp_path / "log").read_text() == "built\n"


def test_a_failed_build_leaves_nothing_and_can_be_repeated(tmp_path: Path) -> None:
    def fail(part: Path) -> None:
        (part / "a").write_text("half")
        raise OSError(28, "No space left on device", str(part / "a"))

    with pytest.raises(StorageError, match="no space left on device") as caught:
        build_once(tmp_path / "entry", fail)
    assert "DCLI_CACHE" in caught.value.hint
    assert [name for name in os.listdir(tmp_path) if "lock" not in name] == []
    assert _build(str(tmp_path)) == 5


def test_a_cache_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"not a directory|file exists"):
        build_once(tmp_path / "file" / "entry", lambda part: None)


SHAPES = ["5", "null", '{"a": 1}', "[1, 2, 2.0]", "[2, 2]", "[1, -2, -2]", "[1, 2, 1]"]
SHAPES += ["[true, 2, 2]", "[1, 2, 3]", "[]", "[0, 2, 2]", "[" * 100_000, ""]
NO_LABELS = [np.array(4), np.zeros((4, 1), int), np.array(list("abcd")), np.arange(3)]


@pytest.mark.parametrize("spoilt", [*SHAPES, *NO_LABELS, b"", b"PK\3\4", 15, 17])
def test_a_cache_is_as_large_as_it_says(spoilt: Any, tmp_path: Path) -> None:
    table = Table(np.zeros((2, 1, 2, 2), np.uint8), np.arange(2))
    write_table(tmp_path, [table, table])
    assert read_table(tmp_path).pixels.shape == (4, 1, 2, 2)
    if isinstance(spoilt, np.ndarray):
        np.save(tmp_path / "labels.npy", spoilt)
    elif isinstance(spoilt, bytes):
        (tmp_path / "labels.npy").write_bytes(spoilt)
    elif isinstance(spoilt, int):
        (tmp_path / "pixels.u8").write_bytes(bytes(spoilt))
    else:
        (tmp_path / "shape.json").write_text(spoilt)
    with pytest.raises(DataError) as caught:
        read_table(tmp_path)
    assert caught.value.code == "DATA-CACHE"
    assert caught.value.hint == f"rm -r {tmp_path}"


@needs_mnist
def test_mnist_is_parsed_once_from_a_read_only_folder(tmp_path: Path) -> None:
    first = ready("mnist", root=SHARED, cache=str(tmp_path), split="test")
    sys.modules.pop("torchvision.datasets", None)
    second = ready("mnist", root="/nowhere", cache=str(tmp_path), split="test")
    assert "torchvision.datasets" not in sys.modules
    index = torch.arange(10_000)
    x0, cond = second.batch(index, rng(10_000))
    assert x0.shape == (10_000, 1, 28, 28) and x0.min() == -1 and x0.max() == 1
    assert cond["label"].bincount().tolist() == [
        *(980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009)
    ]
    assert torch.equal(first.batch(index, rng(10_000))[0], x0)
