"""Which run or checkpoint folder a user means."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from diffusion_cli.errors import CheckpointError


def find(text: str) -> Path:
    """The folder behind a path, or behind the beginning of a name in `runs`."""
    place = Path(text).expanduser()
    if place.is_file():
        message = f"{place}: is a file, not a checkpoint folder; pickles are never read"
        raise CheckpointError(
            message, "name a run or a checkpoint folder", "CKPT-UNSAFE"
        )
    if (place / "manifest.json").exists() or (place / "checkpoints").is_dir():
        return place
    runs = [path for path in Path("runs").glob("*") if (path / "checkpoints").is_dir()]
    start = text.removeprefix("runs/")
    matches = [path for path in runs if path.name.startswith(start)]
    whole = [
        path for path in matches if re.fullmatch(r"-\w{8}|", path.name[len(start) :])
    ]
    exact = [path for path in whole if path.name == start]
    # `digits` is the folder of that name, then digits-1a2b3c4d, then digits-flow-...
    matches = exact or whole or matches
    if matches:
        if len(matches) == 1:
            return matches[0]
        names = ", ".join(sorted(path.name for path in matches)[:5])
        raise CheckpointError(f"ckpt: `{text}` could be {names}", f"ckpt={matches[0]}")
    if place.is_dir():
        return place  # what it lacks is told where it is read
    near = difflib.get_close_matches(place.name, [path.name for path in runs], 3, 0.3)
    tail = "; nearest: " + ", ".join(f"runs/{name}" for name in near) if near else ""
    raise CheckpointError(
        f"ckpt: there is no `{text}`{tail}", "ls runs", "CKPT-MISSING"
    )
