"""Files that anybody may have written: read as data, in bounded time and memory."""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path
from typing import Any, BinaryIO

import yaml  # type: ignore[import-untyped]

Values = dict[str, Any]
_JSON, _YAML = 1 << 26, 1 << 20  # bytes of a file that is read at all
_MOST = 1 << 15  # nodes of a document
_DEEPEST, _WIDEST = 32, 10_000  # levels of a config, values in one
_WHOLE = "tag:yaml.org,2002:int"
_HALF = re.compile(r"\\u[dD][89a-fA-F]")  # of a character, as paths of any bytes have


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
        return _composed(*_loader(_text(path, _YAML)))
    except Exception:  # of a parser that looks up and converts what others wrote
        return None


def word_sized(value: Any) -> bool:
    """Whether a value is a whole number of 64 bits: no step or seed has more."""
    return type(value) is int and -(1 << 63) <= value < 1 << 63


def _loader(text: str) -> tuple[str, Any]:
    """A text and who parses it: libyaml, unless it lacks or refuses something.

    The parser in Python takes ten times as long, and is given a sixteenth.
    """
    if _FAST is not None and not _HALF.search(text):
        return text, _FAST
    if len(text) > _YAML >> 4:
        raise ValueError("too large")
    return text, _SLOW


def _composed(text: str, loader: Any) -> Any:
    """The value of a document, made only if its nodes are few."""
    parser = loader(text)
    node = parser.get_single_node()
    if node is None or not _small(node):
        return None
    found = parser.construct_document(node)
    json.dumps(found, default=str)  # raises for keys that no JSON has
    return found


def _small(node: Any) -> bool:
    """Whether a node is a tree of a sane size: names may refer to names."""
    level = [node]
    for _ in range(_DEEPEST):
        inner = [n.value for n in level if not isinstance(n.value, str)]
        if not inner:
            return True
        if sum(map(len, inner)) > _WIDEST:
            return False
        level = [x[1] if isinstance(x, tuple) else x for v in inner for x in v]
    return False


def _whole(parser: Any, node: Any) -> int:
    """Base 60 takes time that grows as the square of the digits: few are read."""
    value: int = parser.construct_yaml_int(node) if len(node.value) < 80 else 1 << 80
    if not word_sized(value):
        raise ValueError(f"{node.tag}: too large")
    return value


def _count(parser: Any, *_: Any) -> None:
    """Before every node: they take the time, not the bytes."""
    parser.nodes += 1
    if parser.nodes > _MOST:
        raise ValueError("too many nodes")


def _safe(name: str) -> Any:
    """PyYAML's loader of that name, for few nodes and whole numbers of 64 bits."""
    if not hasattr(yaml, name):
        return None
    own = {"nodes": 0, "descend_resolver": _count}
    loader: Any = type(name, (getattr(yaml, name),), own)
    loader.add_constructor(_WHOLE, _whole)
    return loader


_FAST, _SLOW = _safe("CSafeLoader"), _safe("SafeLoader")


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
