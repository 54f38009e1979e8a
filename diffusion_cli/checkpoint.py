"""Checkpoints: safetensors and JSON in a folder that is whole or absent; no pickle.

`RUN/checkpoints/step_00001000/` holds `manifest.json` (format, step, config, data,
versions, sizes, hashes), `state.json` (plain values) and one safetensors file for each
of model, ema-<half-life>, optimizer, objective.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from diffusion_cli import artifact, failpoints, tensorfile
from diffusion_cli.core import Spec
from diffusion_cli.errors import CheckpointError
from diffusion_cli.runs import find
from diffusion_cli.settings import Keep

FORMAT = 1
_log = logging.getLogger(__name__)
_FOLDER = re.compile(r"step_(\d{8,})")
Tensors = Mapping[str, Tensor]


def save(
    folder: Path,
    step: int,
    tensors: Mapping[str, Tensors],
    plain: Mapping[str, Any],
    about: Mapping[str, Any],
) -> Path:
    """Write the checkpoint of a step into `folder`; what it is called.

    Args:
        folder: `RUN/checkpoints`.
        step: Number of steps done.
        tensors: Tensors by file (`model`, `ema-7000`, ...) and name; no file if empty.
        plain: Everything else that has to come back.
        about: `config`, `data` and whatever else the manifest is to tell.
    """
    target = folder / f"step_{step:08d}"
    files: dict[str, artifact.Content] = {
        f"{name}.safetensors": lambda group=group: tensorfile.content(group)  # type: ignore[misc]
        for name, group in tensors.items()
        if group
    }
    text = json.dumps(plain, indent=1)
    files["state.json"] = lambda: [text.encode()]
    artifact.write(target, files, {"format": FORMAT, "step": step, **about})
    return target


def prune(folder: Path, keep: Keep, best: int | None = None) -> None:
    """Delete all but the newest `keep.keep`, multiples of `keep.keep_every`, `best`."""
    if keep.keep == 0:
        return
    failpoints.hit("ckpt.prune")
    for path in steps(folder)[keep.keep :]:
        step = int(path.name.removeprefix("step_"))
        if step != best and (not keep.keep_every or step % keep.keep_every):
            # renamed first: a half-deleted checkpoint must not look like one
            doomed = path.replace(path.with_name(f".tmp-{path.name}"))
            shutil.rmtree(doomed)


def steps(folder: Path) -> list[Path]:
    """The checkpoints in a folder, newest first."""
    found = [path for path in folder.glob("step_*") if _FOLDER.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name[5:]), reverse=True)


def clean(folder: Path) -> None:
    """Remove what a killed save left behind."""
    for path in [*folder.glob(".tmp-step_*"), *folder.glob(".old-step_*")]:
        _log.warning("removing %s, left by an interrupted save", path.name)
        shutil.rmtree(path)


def newest(folder: Path, *, aside: bool = False) -> Checkpoint | None:
    """The newest checkpoint in `RUN/checkpoints` that verifies; None if there is none.

    If all are damaged, that is a `CheckpointError`: nothing starts over by itself.

    Args:
        folder: `RUN/checkpoints`.
        aside: Rename damaged ones to `.bad-*`.
    """
    reasons: list[str] = []
    for path in steps(folder):
        try:
            return Checkpoint(path)
        except CheckpointError as error:
            if error.code == "CKPT-FORMAT":  # sound: for a newer dcli
                raise
            reasons.append(error.message)
            _log.warning("%s; falling back to an older one", error.message)
            if aside:
                path.replace(_unused(path.with_name(f".bad-{path.name}")))
    if not reasons:
        reasons = [f"{path}: set aside" for path in folder.glob(".bad-step_*")]
    if reasons:
        text = f"{folder}: every checkpoint is damaged: " + "; ".join(reasons)
        hint = "dcli train ... fresh=true begins again"
        raise CheckpointError(text, hint, "CKPT-CORRUPT")
    return None


def load(path: str | Path, key: str = "ckpt") -> Checkpoint:
    """A checkpoint, a run's newest one, or that of the run whose name begins so."""
    place = find(str(path), key)
    if (place / "checkpoints").is_dir() or (place / "status.json").exists():
        found = newest(place / "checkpoints")
        if found is None:
            message = f"{place}: the run has no checkpoint, or none yet"
            hint = "let it train to its first: every.save=..."
            raise CheckpointError(message, hint, "CKPT-MISSING")
        return found
    return Checkpoint(place)


class Checkpoint:
    """A verified checkpoint on disk.

    Args:
        folder: Its folder; every file is checked against its hash.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = artifact.verify(folder)
        found = self.manifest.get("format")
        if not isinstance(found, int) or found > FORMAT:
            message = f"{folder}: format {found} > supported {FORMAT}; upgrade dcli"
            raise CheckpointError(
                message, "pip install -U diffusion-cli", "CKPT-FORMAT"
            )
        try:
            self.step = int(self.manifest["step"])
            self.config = dict(self.manifest["config"])
            self.spec = Spec.parse(self.manifest["data"])
            self.files = dict(self.manifest["files"])
        except (KeyError, TypeError, ValueError) as error:
            raise artifact.broken(folder, f"manifest.json lacks {error}") from error

    @property
    def home(self) -> Path:
        """The folder of the run; the checkpoint's own if it lies alone."""
        inside = self.folder.parent.name == "checkpoints"
        return self.folder.parent.parent if inside else self.folder

    @property
    def hash(self) -> str:
        """A short name for the weights, the same for the same bits."""
        kinds = [name for name in self.files if name.startswith(("model.", "ema-"))]
        text = "".join(name + self.files[name]["sha256"] for name in sorted(kinds))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def plain(self) -> dict[str, Any]:
        """The plain values that `save` was given."""
        return artifact.parse(self.folder / "state.json")

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of one file (`model`, `ema-7000`), on the CPU; empty if absent.

        They are mapped from the file: copy before changing them.
        """
        file = f"{name}.safetensors"
        return tensorfile.read(self.folder / file) if file in self.files else {}

    def weights(self, which: str = "ema") -> dict[str, Tensor]:
        """The tensors of the model: `raw`, `ema-<half-life>`, or `ema`, the first."""
        kept = [name.removesuffix(".safetensors") for name in self.files]
        averages = [name for name in kept if name.startswith("ema-")]
        if which == "raw":
            return self.tensors("model")
        if which != "ema" and which not in averages:
            options = ", ".join(["raw", *averages])
            message = f"{self.folder}: there are no weights `{which}`, but {options}"
            raise CheckpointError(message, "weights=raw")
        if not averages:
            message = f"{self.folder}: no average was kept (trainer.ema=[])"
            raise CheckpointError(message, "weights=raw")
        average = averages[0] if which == "ema" else which
        return self.tensors("model") | self.tensors(average)

    def load_model(self, model: nn.Module, weights: str = "ema") -> None:
        """Copy the weights into a model of exactly the same parts."""
        fill(model, self.weights(weights), str(self.folder))

    def init_model(self, model: nn.Module) -> tuple[list[str], list[str]]:
        """Copy weights by name; which the model lacks, and which the checkpoint."""
        mine, theirs = model.state_dict(), self.weights("ema")
        shared = {name: tensor for name, tensor in theirs.items() if name in mine}
        fill(model, mine | shared, str(self.folder))
        return sorted(theirs.keys() - mine.keys()), sorted(mine.keys() - theirs.keys())


def fill(module: nn.Module, tensors: Tensors, where: str) -> None:
    """Copy tensors into a module by name; a `CheckpointError` names what differs."""
    mine = {name: tuple(t.shape) for name, t in module.state_dict().items()}
    theirs = {name: tuple(t.shape) for name, t in tensors.items()}
    wrong = [
        f"{name}: {theirs.get(name, 'missing')} in the checkpoint, "
        f"{mine.get(name, 'missing')} in the model"
        for name in sorted(mine.keys() | theirs.keys())
        if mine.get(name) != theirs.get(name)
    ]
    if wrong:
        shown = "\n  ".join(wrong[:5])
        more = f"\n  and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        message = f"{where}: the model differs from the checkpoint\n  {shown}{more}"
        raise CheckpointError(message, "choose the same network", "CKPT-MISMATCH")
    module.load_state_dict(dict(tensors))


def _unused(path: Path) -> Path:
    number = 0
    while (
        free := path.with_name(f"{path.name}-{number}") if number else path
    ).exists():
        number += 1
    return free
