"""Files that anybody may have written: read as data, in bounded time and memory."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import yaml  # type: ignore[import-untyped]

Values = dict[str, Any]
_JSON, _YAML = (
    1 << 26,
    1 << 16,
)  # bytes of what is read; a config has 2 kB
_DEEPEST, _WIDEST = 32, 10_000  # levels of a config, values in one
_FAST = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml, in a tenth of the time
_HALF = re.compile(r"\\u[dD][89a-fA-F]")  # what libyaml refuses and paths may have


def json_in(path: Path) -> Values:
    """A JSON object; empty if there is none."""
    try:
        found = json.loads(_text(path, _JSON))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def yaml_in(path: Path) -> Any:
    """A YAML document; None if it is none, too large, or more than JSON can say."""
    try:
        text = _text(path, _YAML)
        loader = yaml.SafeLoader if _HALF.search(text) else _FAST
        found = loader(text).get_single_data()
        if _small(found):
            json.dumps(found, default=str)  # raises for keys that no JSON has
            return found
    except Exception:  # of a parser that looks up and converts what others wrote
        pass
    return None


def word_sized(value: Any) -> bool:
    """Whether a value is a whole number of 64 bits: no step or seed has more."""
    return type(value) is int and -(1 << 63) <= value < 1 << 63


def _small(value: Any) -> bool:
    """Whether a value is a tree of a sane size: names may refer to names."""
    level = [value]
    for _ in range(_DEEPEST):
        if any(type(x) is int and not word_sized(x) for x in level):
            return False
        inner = [x for x in level if isinstance(x, dict | list | set | tuple)]
        if not inner:
            return True
        if sum(map(len, inner)) > _WIDEST:
            return False
        level = [
            x for v in inner for x in (v.values() if isinstance(v, Mapping) else v)
        ]
    return False


def _text(path: Path, largest: int) -> str:
    with opened(path) as file:
        if os.fstat(file.fileno()).st_size > largest:
            raise ValueError(f"{path} is too large")
        return file.read().decode("utf-8")


def opened(path: Path) -> BinaryIO:
    """A plain file; what would wait for a writer is none."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(f"{path} is no file")
    return path.open("rb")
