"""Table F: data that are not what they should be."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
from harness import TRAIN, Place, controls, place, says
from pictures import picture, put
from PIL import Image
from test_c_signals import never_resident
from tiny import outcome

__all__ = ["controls", "place"]  # fixtures
pytestmark = pytest.mark.fault

OWN = tuple(word for word in TRAIN if not word.startswith("dataset"))
IMAGES = (*OWN, "dataset=image_folder", "dataset.path=photos", "network=mlp")


def photos(*images: tuple[str, Image.Image]) -> Callable[[Place], None]:
    def make(there: Place) -> None:
        (there.work / "photos").mkdir()
        there.own.add("photos")
        for name, image in images:
            put(image, there.work / "photos" / name)

    return make


def broken(there: Place) -> None:
    photos(("a.png", picture()), ("b.png", picture(50)))(there)
    whole = (there.work / "photos" / "a.png").read_bytes()
    (there.work / "photos" / "cut.png").write_bytes(whole[:40])
    (there.work / "photos" / "empty.png").touch()
    (there.work / "photos" / "text.png").write_text("no picture")


def odd_names(there: Place) -> None:
    photos(("a b\n\u00e9.png", picture()))(there)
    raw = os.fsencode(there.work / "photos") + b"/\xff.png"
    Path(os.fsdecode(raw)).write_bytes(
        (there.work / "photos/a b\n\u00e9.png").read_bytes()
    )
    (there.work / "photos" / "loop").symlink_to(".")


def modes(there: Place) -> None:
    every = [(f"{m}.png", picture(100, mode=m)) for m in ("P", "L", "LA", "RGBA")]
    photos(*every)(there)
    put(picture(100, mode="CMYK"), there.work / "photos" / "cmyk.jpg")


def in_classes(there: Place) -> None:
    photos(("cat/a.png", picture()), ("b.png", picture()))(there)


def in_workers(act: Callable[[], Any]) -> Callable[[], None]:
    """In the child: images come from workers, and one of them does something."""

    def arrange() -> None:
        from diffusion_cli import loading
        from diffusion_cli.datasets.images import Images

        never_resident()
        loading.PATIENCE = 2
        real = Images.batch

        def batch(data: Any, indices: Any, rng: Any) -> Any:
            if os.getpid() != os.getsid(0) and 3 in indices.tolist():
                act()
            return real(data, indices, rng)

        Images.batch = batch  # type: ignore[method-assign]

    return arrange


def wrong() -> None:
    raise ValueError("cannot do this one")


def too_large(there: Place) -> None:
    """A data set of somebody's own, in 0 .. 255."""
    there.file("mine.py", """
import torch
from diffusion_cli.core import Spec
from diffusion_cli.datasets import datasets
from diffusion_cli.datasets.digits import Digits

@datasets("mine")
class Mine(Digits):
    def batch(self, indices, rng):
        x0, cond = super().batch(indices, rng)
        return (x0 + 1) * 127.5, cond
""")  # fmt: skip


def without_number(there: Place) -> None:
    """A data set of somebody's own, with a NaN in every sample."""
    there.file("mine.py", """
from diffusion_cli.datasets import datasets
from diffusion_cli.datasets.toy2d import Toy2D

@datasets("mine")
class Mine(Toy2D):
    def batch(self, indices, rng):
        x0, cond = super().batch(indices, rng)
        x0[:, 0] = float("nan")
        return x0, cond
""")  # fmt: skip


class Row(NamedTuple):
    """A data set, a command, and how it ends."""

    name: str
    arrange: Callable[[Place], Any]
    code: int
    says: str
    words: tuple[str, ...] = IMAGES
    before: Callable[[], Any] | None = None
    env: Mapping[str, str] = MappingProxyType({})


SEVEN = photos(*((f"{i}.png", picture(30 * i)) for i in range(7)))
TEAM = (*IMAGES, "trainer.workers=2")
NET = {name: "http://127.0.0.1:9" for name in ("http_proxy", "https_proxy")}
ROWS = [
    Row("D6", without_number, 3, r"error\[DATA-RANGE\]: dataset: there are NaN or inf",
        (*TRAIN, "plugins=[mine.py]", "dataset.name=mine")),
    Row("F1-missing", lambda there: None, 3, "photos does not exist"),
    Row("F1-empty", photos(), 3, r"\.png.*no files at all"),
    Row("F1-none", lambda there: there.file("photos/x.tiff", ""), 3, "such as x.tiff"),
    Row("F2", broken, 3, r"(?s)3 of 5 images cannot be decoded\n  cut.png: .*\n  emp"),
    Row("F2-skip", broken, 0, "skipped 3 broken images",
        (*IMAGES, "dataset.bad=skip", "dataset.bad_limit=3")),
    Row("F2-limit", broken, 3, "3 of 5 images",
        (*IMAGES, "dataset.bad=skip", "dataset.bad_limit=2")),
    Row("F4", photos(("a.png", picture()), ("b.png", picture(size=(9, 9)))), 3,
        r"(?s)6x4.*9x9|9x9.*6x4"),
    Row("F5", modes, 0, r"converted .*1 CMYK.* to RGB"),
    Row("F7", photos(("a.png", picture())), 0, "step 12/12"),
    Row("F8", in_classes, 3, r"1 of 2 images lie in no class folder: b.png"),
    Row("F9", too_large, 3, r"values from 0 to 255, expected images in \[-1, 1\]",
        (*OWN, "plugins=[mine.py]", "dataset=digits", "dataset.name=mine",
         "network=mlp")),
    Row("F10-raises", SEVEN, 3, r"error\[DATA-ITEM\]: dataset: sample 3 cannot be "
        "loaded: ValueError: cannot do this one", TEAM, in_workers(wrong)),
    Row("F10-exits", SEVEN, 9, "a loader worker died", TEAM,
        in_workers(lambda: os._exit(3))),
    Row("F10-killed", SEVEN, 9, r"a loader worker died.*\nhint: likely out of RAM",
        TEAM, in_workers(lambda: os.kill(os.getpid(), 9))),
    Row("F10-hangs", SEVEN, 9, "worker", TEAM,
        in_workers(lambda: __import__("time").sleep(60))),
    Row("F13", lambda there: None, 5, r"error\[OFFLINE\]: .*https?://.*\nhint: put "
        r".*md5 [0-9a-f]{32}\) into ", (*OWN, "dataset=mnist", "network=mlp"),
        None, NET),
    Row("F17", odd_names, 0, "step 12/12"),
]  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_data(row: Row, place: Place) -> None:
    row.arrange(place)
    told = place.dcli(*row.words, before=row.before, **row.env)
    assert told.code == row.code, told.err
    says(told, row.says)
    assert told.seconds < 30
    if row.code:
        assert not list(place.work.glob("run/checkpoints/*"))
    if row.name in (
        "F10-exits",
        "F10-killed",
        "F10-hangs",
    ):  # a worker that is ended cannot tidy up after itself
        for socket in (place.root / "tmp").glob("pymp-*"):
            shutil.rmtree(socket)
    if row.name == "F13":
        assert not [p for p in (place.root / "data").rglob("*")
                    if p.is_file() and p.stat().st_size]  # fmt: skip


def test_workers_change_nothing(place: Place) -> None:
    """F11."""
    SEVEN(place)
    for workers in (0, 2):
        told = place.dcli(
            *IMAGES, f"trainer.workers={workers}", f"out=run{workers}",
            before=never_resident,
        )  # fmt: skip
        assert told.code == 0, told.err
        place.own.add(f"run{workers}")
    assert outcome(place.work / "run0") == outcome(place.work / "run2")


def test_an_edited_set_is_refused(place: Place) -> None:
    """F12."""
    SEVEN(place)
    assert place.dcli(*IMAGES, "trainer.steps=4").code == 0
    put(picture(), place.work / "photos" / "new.png")
    told = place.dcli(*IMAGES)
    assert told.code == 2
    says(told, r"dataset: changed from 7 \w+ .* to 8 \w+")
