"""Which run or checkpoint folder a user means."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path

from diffusion_cli.errors import CheckpointError
from diffusion_cli.paths import assignment, shown, typed


def find(text: str, key: str = "ckpt") -> Path:
    """The folder behind a path, or behind the beginning of a name in `runs`."""
    place = typed(text, key)
    if place.is_file():
        message = f"{place}: is a file, not a checkpoint folder; pickles are never read"
        raise CheckpointError(
            message, "name a run or a checkpoint folder", "CKPT-UNSAFE"
        )
    if place.name == "checkpoints" and place.is_dir():
        place = place.parent
    if (place / "manifest.json").exists() or (place / "checkpoints").is_dir():
        return place
    runs = [path for path in Path("runs").glob("*") if (path / "checkpoints").is_dir()]
    matches = beginning(text.removeprefix("runs/"), runs)
    if matches:
        if len(matches) == 1:
            return matches[0]
        from diffusion_cli import apart  # it reads runs, and names them by this file

        *_, last = apart.by_age(matches)
        message = f"{key}: `{text}` could be {apart.told(matches)}"
        raise CheckpointError(message, assignment(key, str(last.path)))
    inner = [path for path in place.glob("*") if (path / "checkpoints").is_dir()]
    if inner:
        message = f"{key}: {shown(str(place))} holds {len(inner)} runs, and is none"
        newest = max(inner, key=lambda path: path.stat().st_mtime)
        raise CheckpointError(message, assignment(key, str(newest)), "CKPT-MISSING")
    if place.is_dir():
        return place  # what it lacks is told where it is read
    beside = [path for path in place.parent.glob("*") if path.is_dir()]
    where = "" if place.is_absolute() else f" in {shown(str(Path.cwd()))}"
    tail = nearest(place.name, runs or beside)
    hint = "dcli runs ls"
    if not runs:
        tail = tail or " nor a run" * bool(where)
        hint = f"cd to where runs lies, or {key}=<path of a run>"
    message = f"{key}: there is no `{text}`{where}{tail}"
    raise CheckpointError(message, hint, "CKPT-MISSING")


def beginning(start: str, runs: Sequence[Path]) -> list[Path]:
    """The runs whose name begins so.

    `digits` is the folder of that name, then digits-1a2b3c4d, then digits-flow-...
    """
    matches = [path for path in runs if path.name.startswith(start)]
    whole = [
        path for path in matches if re.fullmatch(r"-\w{8}|", path.name[len(start) :])
    ]
    exact = [path for path in whole if path.name == start]
    return exact or whole or matches


def nearest(name: str, runs: Sequence[Path]) -> str:
    """Runs of a name like this, as the end of a message."""
    paths = {path.name: str(path) for path in runs}
    close = difflib.get_close_matches(name, paths, 3, 0.3)
    return "; nearest: " + ", ".join(paths[name] for name in close) if close else ""
