"""Files that anybody may have written: read as data, in bounded time and memory."""

from __future__ import annotations

import json
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import yaml  # type: ignore[import-untyped]

Values = dict[str, Any]
_LARGEST = 1 << 26  # bytes of a file that is read at all
_DEEPEST, _WIDEST = 32, 10_000  # levels of a config, values in one


def json_in(path: Path) -> Values:
    """A JSON object; empty if there is none."""
    try:
        found = json.loads(_text(path))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def yaml_in(path: Path) -> Any:
    """A YAML document; None if there is none, or if it unfolds to too much."""
    try:
        found = _parsed(_text(path))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return None
    return found if _small(found) else None


def _parsed(text: str) -> Any:
    """By libyaml, in a tenth of the time; what it lacks or refuses is tried without."""
    with suppress(AttributeError, yaml.YAMLError):
        return yaml.CSafeLoader(text).get_single_data()
    return yaml.safe_load(text)


def _small(value: Any) -> bool:
    """Whether a value is a tree of a sane size: names may refer to names."""
    level = [value]
    for _ in range(_DEEPEST):
        inner = [list(v.values()) if isinstance(v, dict) else v for v in level]
        level = [x for v in inner if isinstance(v, list) for x in v]
        if not level:
            return True
        if len(level) > _WIDEST:
            return False
    return False


def _text(path: Path) -> str:
    with opened(path) as file:
        if os.fstat(file.fileno()).st_size > _LARGEST:
            raise ValueError(f"{path} is too large")
        return file.read().decode("utf-8")


def opened(path: Path) -> BinaryIO:
    """A plain file; what would wait for a writer is none."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(f"{path} is no file")
    return path.open("rb")
