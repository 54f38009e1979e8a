"""Pictures of a run as data URIs, read as what they are and not as they are named."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from diffusion_cli.records import Record

LARGEST = 8 << 20  # bytes of a picture that is put into the page
MOST = 16  # pictures of measurements
_STARTS = ("encode", "restore", "interpolate")  # keys of samples with a given start
_TYPES = {"PNG": "image/png", "GIF": "image/gif"}


class Picture(NamedTuple):
    """A picture on the page, or why there is none."""

    caption: str
    source: str  # a data URI; empty if it is left out
    width: int
    height: int
    coarse: bool = False  # small pixels that are to stay sharp


def previews(record: Record) -> list[Picture]:
    """The newest samples that training drew: of averaged, then of raw weights."""
    found = {}
    for path in record.path.glob("samples/step_*.png"):
        if match := re.fullmatch(r"step_([0-9]{1,20})(-raw)?", path.stem):
            found[int(match[1]), not match[2]] = path
    last = max((step for step, _ in found), default=0)
    kinds = [(own, "averaged" if own else "raw") for own in (True, False)]
    read = [
        _read(found[last, own], f"preview at step {last}, {name} weights")
        for own, name in kinds
        if (last, own) in found
    ]
    return [picture for picture in read if picture]


def drawn(record: Record, name: str) -> Picture | None:
    """The newest picture of that name that `dcli sample` left: grid.png, ...

    Samples that began at the prior come before those that were given a start.
    """
    paths = record.path.glob(f"samples/*/{name}")
    found = [(path, _about(path.parent)) for path in paths]
    if not found:
        return None
    path, about = max(
        found, key=lambda one: (not any(map(one[1].get, _STARTS)), _time(one[0]))
    )
    return _read(path, _caption(about) or path.parent.name)


def derived(record: Record) -> list[Picture]:
    """The pictures that `dcli eval` left beside its numbers."""
    found = sorted(record.path.glob("derived/*/*.png"), key=_time)
    newest = {path.name: path for path in found[-MOST:]}
    read = [_read(path, _measure(path.stem)) for path in newest.values()]
    return [picture for picture in read if picture]


def _measure(stem: str) -> str:
    """A metric as words, without the hash of how it was measured."""
    return re.sub(r"-[0-9a-f]{8}$", "", stem).replace("_", " ")


def _about(folder: Path) -> dict[str, Any]:
    """What `dcli sample` says of its samples."""
    try:
        found = json.loads((folder / "about.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _caption(about: dict[str, Any]) -> str:
    """How samples were drawn; empty if that is not known."""
    try:
        sampler, calls = about["sampler"], about["network_calls_per_sample"]
        steps = f", {sampler['steps']} steps" if sampler.get("steps") else ""
        starts = [f", {key}={about[key]}" for key in _STARTS if about.get(key)]
        told = f"{sampler['name']}{steps}, {calls:g} calls each, seed {about['seed']}"
    except (ValueError, TypeError, KeyError, AttributeError):
        return ""
    return told + "".join(starts)


def _read(path: Path, caption: str) -> Picture | None:
    try:
        size = path.stat().st_size
        if size > LARGEST:
            where = f"{path.name} has {size / 2**20:.0f} MB and is left out"
            return Picture(f"{caption}: {where}", "", 0, 0)
        with Image.open(path) as image:
            kind, (width, height) = _TYPES.get(image.format or ""), image.size
        data = base64.b64encode(path.read_bytes()).decode()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None  # torn, or no picture at all
    if kind is None:
        return None
    source = f"data:{kind};base64,{data}"
    return Picture(caption, source, width, height, width < 600)


def _time(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
