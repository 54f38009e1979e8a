"""Samples read back from files: the inverse of `save`, and what can be wrong."""

import io

import numpy as np
import pytest
import torch
from oracles import rows
from PIL import Image

from diffusion_cli.core import Spec
from diffusion_cli.datasets import datasets
from diffusion_cli.datasets.images import image_spec
from diffusion_cli.errors import DataError

IMAGES, TOY = datasets["digits"], datasets["toy2d"]
GREY, COLOUR = image_spec((1, 8, 8), (), 17), image_spec((3, 6, 4), ())
PLANE = Spec((2,))
TEXT, CELLS = datasets["text"], datasets["digit_tokens"]
LETTERS = Spec((4,), "tokens", vocab=3, codec={"characters": "abc"})
DIGITS = Spec((64,), "tokens", vocab=17)


def levels(spec, count=5):
    top = int(spec.codec["levels"]) - 1
    x = rows(count).integers(top + 1, (count, *spec.shape))
    return x * (2 / top) - 1


@pytest.mark.parametrize("spec", [GREY, COLOUR], ids=["grey", "colour"])
def test_images_come_back_as_they_were_saved(spec, tmp_path):
    x = levels(spec)
    IMAGES.save(x[:3], spec, tmp_path, 0)
    IMAGES.save(x[3:], spec, tmp_path, 3)
    Image.new("RGB", (300, 300)).save(tmp_path / "grid.png")
    torch.testing.assert_close(IMAGES.load(tmp_path, spec), x)
    one = IMAGES.load(tmp_path / "000003.png", spec)
    torch.testing.assert_close(one, x[3:4])


def test_a_folder_of_pictures_with_other_names_is_read_in_their_order(tmp_path):
    for name, level in (("b.PNG", 255), ("a.jpg", 0), ("c/d.webp", 128)):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        Image.new("L", (4, 6), level).save(path)
    found = IMAGES.load(tmp_path, COLOUR)
    assert found.shape == (3, 3, 6, 4)
    means = found.flatten(1).mean(1).tolist()
    assert means == pytest.approx([-1, 1, 256 / 255 - 1], abs=0.02)


def test_what_turns_grey_is_told(tmp_path, caplog):
    for name, mode in (("a", "RGB"), ("b", "RGB"), ("c", "L"), ("d", "RGBA")):
        colour = 7 if mode == "L" else "red"
        Image.new(mode, (4, 4), colour).save(tmp_path / f"{name}.png")
    assert IMAGES.load(tmp_path, Spec((1, 4, 4))).shape == (4, 1, 4, 4)
    assert caplog.messages == [f"{tmp_path}: converted 2 RGB, 1 RGBA to grey"]
    caplog.clear()
    IMAGES.load(tmp_path / "c.png", Spec((1, 4, 4)))
    assert not caplog.messages


def test_the_rest_of_a_text_is_told(tmp_path, caplog):
    for name, text in (("a", "abcabcabca"), ("b", "ab")):
        (tmp_path / f"{name}.txt").write_text(text)
    found = TEXT.load(tmp_path, LETTERS)
    assert found.tolist() == [[0, 1, 2, 0], [1, 2, 0, 1]]
    told = "4 tokens after the last 4 of a file are left out"
    assert caplog.messages == [f"{tmp_path}: {told}"]


def test_a_file_of_another_kind_is_no_image(tmp_path):
    (tmp_path / "a.png").write_text("no image at all")
    reason = r"a\.png: cannot be read: no PNG, JPEG or WebP"
    with pytest.raises(DataError, match=reason):
        IMAGES.load(tmp_path, GREY)


@pytest.mark.parametrize(("kind", "spec"), [(IMAGES, GREY), (TOY, PLANE)])
def test_arrays_as_dcli_sample_writes_them(kind, spec, tmp_path):
    x = rows(4).normal((4, *spec.shape)).clamp(-1, 1)
    folder = tmp_path / "samples"
    folder.mkdir()
    np.savez(folder / "samples.npz", samples=x.numpy(), labels=np.arange(4))
    np.save(tmp_path / "x.npy", x.double().numpy())
    np.savez(tmp_path / "one.npz", x.numpy())
    for place in (folder / "samples.npz", folder, tmp_path / "x.npy"):
        found = kind.load(place, spec)
        assert found.dtype == torch.float32 and torch.equal(found, x)
    assert torch.equal(kind.load(tmp_path / "one.npz", spec), x)


def test_points_come_back_as_they_were_saved(tmp_path):
    x = rows(7).normal((7, 2))
    TOY.save(x[:4], PLANE, tmp_path, 0)
    TOY.save(x[4:], PLANE, tmp_path, 4)
    assert torch.equal(TOY.load(tmp_path, PLANE), x)
    bare = tmp_path / "bare.txt"
    bare.write_text("1e-1,2\n-3,4.5\n")
    assert TOY.load(bare, PLANE).tolist() == [[pytest.approx(0.1), 2], [-3, 4.5]]


def npz(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def png(width, height):
    buffer = io.BytesIO()
    Image.new("L", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


OBJECTS = npz(samples=np.array([{"a": 1}], object))
FAULTS = [
    (IMAGES, GREY, "x.png", png(9, 8), "9x8 pixels", "the model's have 8x8"),
    (IMAGES, GREY, "x.png", png(8, 8)[:45], "cannot be read", ""),
    (IMAGES, GREY, "x.png", b"", "cannot be read", ""),
    (IMAGES, GREY, "x.txt", b"hello", "cannot be read", ""),
    (IMAGES, GREY, "x.npz", b"PK\3\4 torn", "cannot be read", ""),
    (IMAGES, GREY, "x.npy", b"", "cannot be read", ""),
    (IMAGES, GREY, "x.npz", OBJECTS, "cannot be read", ""),
    (IMAGES, GREY, "x.npz", npz(a=np.ones(1), b=np.ones(1)), "no array `samples`", ""),
    (
        IMAGES,
        GREY,
        "x.npz",
        npz(samples=np.ones((2, 1, 8, 9))),
        "(2, 1, 8, 9)",
        "1, 8, 8",
    ),
    (IMAGES, GREY, "x.npz", npz(samples=np.ones((0, 1, 8, 8))), "(0, 1, 8, 8)", ""),
    (
        IMAGES,
        GREY,
        "x.npz",
        npz(samples=np.ones((1, 1, 8, 8), int)),
        "int64 numbers",
        "",
    ),
    (IMAGES, GREY, "x.npz", npz(samples=np.full((1, 1, 8, 8), 255.0)), "up to 255", ""),
    (IMAGES, GREY, "x.npz", npz(samples=np.full((1, 1, 8, 8), np.nan)), "finite", ""),
    (TOY, PLANE, "x.csv", b"x,y\n1,2\n3\n", "cannot be read", ""),
    (TOY, PLANE, "x.csv", b"x,y,z\n1,2,3\n", "(1, 3)", "(N, 2)"),
    (TOY, PLANE, "x.csv", b"x,y\n", "(0, ", ""),
    (TOY, PLANE, "x.csv", b"x,y\n1,nan\n", "finite", ""),
    (TOY, PLANE, "x.csv", b"\xff\xfe\0", "cannot be read", ""),
    (TOY, PLANE, "x.npz", npz(samples=np.ones((2, 3))), "(2, 3)", "(N, 2)"),
]


FAULTS += [
    (TEXT, LETTERS, "x.txt", b"abd", "does not know the character 'd'", "abc"),
    (TEXT, LETTERS, "x.txt", b"abc", "no text of 4 tokens", "a longer text"),
    (TEXT, LETTERS, "x.txt", b"", "no text of 4 tokens", "a longer text"),
    (TEXT, LETTERS, "x.txt", b"\xff\xfe", "not UTF-8", ""),
    (CELLS, DIGITS, "x.png", png(9, 8), "9x8 pixels", "8x8"),
]
for kind, spec in ((TEXT, LETTERS), (CELLS, DIGITS)):
    wrong = np.full((2, *spec.shape), spec.vocab), np.full((2, *spec.shape), -1)
    outside = f"tokens outside 0 .. {spec.vocab - 1}"
    FAULTS += [(kind, spec, "x.npz", npz(samples=x), outside, "") for x in wrong]
    short, real = np.ones((2, 3), int), np.ones((2, *spec.shape))
    FAULTS.append((kind, spec, "x.npz", npz(samples=short), "(2, 3)", "(N, "))
    FAULTS.append((kind, spec, "x.npz", npz(samples=real), "float64 numbers", ""))


@pytest.mark.parametrize(("kind", "spec"), [(TEXT, LETTERS), (CELLS, DIGITS)])
def test_tokens_come_back_as_they_were_saved(kind, spec, tmp_path):
    x = rows(5).integers(spec.vocab, (5, *spec.shape))
    kind.save(x[:3], spec, tmp_path, 0)
    kind.save(x[3:], spec, tmp_path, 3)
    Image.new("RGB", (300, 300)).save(tmp_path / "grid.png")
    assert torch.equal(kind.load(tmp_path, spec), x)
    (tmp_path / "arrays").mkdir()
    np.savez(tmp_path / "arrays" / "samples.npz", samples=x.numpy())
    assert torch.equal(kind.load(tmp_path / "arrays", spec), x)


@pytest.mark.filterwarnings("ignore:.*no data")
@pytest.mark.parametrize(("kind", "spec", "name", "data", "message", "hint"), FAULTS)
def test_faults_name_the_file(kind, spec, name, data, message, hint, tmp_path):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(DataError) as caught:
        kind.load(path, spec)
    text = caught.value.render()
    assert str(path) in text and message in text and hint in text


@pytest.mark.parametrize(("kind", "spec"), [(IMAGES, GREY), (TOY, PLANE)])
def test_nothing_to_read(kind, spec, tmp_path):
    for path, message in ((tmp_path, "no samples"), (tmp_path / "no", "not exist")):
        with pytest.raises(DataError, match=message):
            kind.load(path, spec)
