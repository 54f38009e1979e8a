"""A report as a reader of HTML sees it, and runs to report on."""

from __future__ import annotations

import base64
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import yaml
from conftest import Dcli
from PIL import Image

VOID = ("meta", "img", "br", "path", "link", "input")


class Page(HTMLParser):
    """What a browser would find: elements, where they point, and the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text: list[str] = []
        self.feed(html)
        assert self.open == [], "every element is closed"

    def handle_starttag(self, tag: str, attrs: list[Any]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    @property
    def pictures(self) -> list[bytes]:
        uris = [value for name, value in self.attributes if name == "src"]
        return [base64.b64decode(uri.partition(",")[2]) for uri in uris]


def report(dcli: Dcli, *words: str) -> tuple[str, Page]:
    got = dcli("report", *words)
    assert got.code == 0, got.err
    html = Path(got.out.strip()).read_text(encoding="utf-8")
    return html, Page(html)


def left(folder: Path, status: str = "complete", step: int = 4, **more: Any) -> Path:
    """A run folder as `dcli train` leaves it, with a picture, without weights."""
    (folder / "samples").mkdir(parents=True)
    about = {"status": status, "step": step, "pid": 1, "host": "elsewhere", **more}
    config = {
        "name": folder.name,
        "seed": 0,
        "dataset": {"name": "toy2d", "root": "a"},
        "process": {"name": "gaussian", "schedule": {"name": "linear"}},
        "trainer": {"steps": 4},
    }
    environment = {"versions": {"torch": "2.0", "dcli": "0"}, "git": None}
    lines = [{"step": i, "loss": 1.0 / i, "loss_t0.5": 2.0} for i in range(1, 5)]
    (folder / "status.json").write_text(json.dumps(about))
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "overrides.yaml").write_text("[dataset=toy2d]")
    (folder / "environment.json").write_text(json.dumps(environment))
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text)
    Image.new("RGB", (4, 4)).save(folder / "samples" / "step_00000004.png")
    return folder


def measure(
    folder: Path,
    value: float,
    seed: int = 0,
    dataset: dict[str, Any] | None = None,
    sampler: dict[str, Any] | None = None,
    about: dict[str, Any] | None = None,
    **protocol: Any,
) -> None:
    """A line as `dcli eval` keeps it."""
    place = folder / "derived" / "abc-ema" / "metrics.jsonl"
    place.parent.mkdir(parents=True, exist_ok=True)
    node = {"name": "w2", "n": 100, **protocol}
    line = {"metric": node, "values": {"w2": value, "w2_se": 0.1}, "step": 4}
    line |= {"weights": "ema", "seed": seed, "dataset": dataset}
    line["sampler"] = {"name": "euler", "steps": 2, **(sampler or {})}
    line |= about or {}
    with place.open("a") as file:
        file.write(json.dumps(line) + "\n")
