"""`dcli report`: runs as one HTML file; free of torch."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from diffusion_cli import records
from diffusion_cli.artifact import storage
from diffusion_cli.errors import ConfigError
from diffusion_cli.paths import shown, typed
from diffusion_cli.report.page import page

MADE = '<meta name="generator" content="dcli'  # what a report of ours begins with


def run(settings: dict[str, Any], overrides: list[str]) -> None:
    """Write the report; its path goes to stdout."""
    outs = [word[4:] for word in overrides if word.startswith("out=")]
    words = [word for word in overrides if not word.startswith("out=")]
    for word in words:
        key, equals, _ = word.partition("=")
        if word.startswith("-") or (equals and not Path(word).exists()):
            raise ConfigError(f"report: takes no `{key}`", "dcli report --help")
    target = _target(outs[-1] if outs else "report.html")
    told: list[str] = []
    found = records.gather(words, told, "report")
    for text in told:
        print(f"passed over: {shown(text)}", file=sys.stderr)
    data = page(found).encode("utf-8", "backslashreplace")  # names may be any bytes
    part = target.with_name(f".{target.name}.part")
    with storage(target):
        try:
            part.write_bytes(data)
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
    size = len(data) / 2**20
    plural = "s" * (len(found) > 1)
    print(f"{len(found)} run{plural}, {size:.1f} MB", file=sys.stderr)
    print(target)


def _target(word: str) -> Path:
    """Where the page goes: nothing but an older report is replaced."""
    path = typed(word, "out")
    if not word or path.is_dir():
        hint = f"out={path / 'report.html'}"
        raise ConfigError(f"out: `{word}` is a folder", hint)
    if not path.parent.is_dir():
        raise ConfigError(f"out: there is no folder {path.parent}", "mkdir it first")
    if path.exists():
        with path.open("rb") as file:
            if MADE.encode() not in file.read(2048):
                message = f"out: {path} is there and is no report"
                raise ConfigError(message, "out=<another file>")
    return path
