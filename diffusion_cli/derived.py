"""What is computed from weights: `RUN/derived/<hash of the weights>/<name>/`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from diffusion_cli import artifact, tensorfile
from diffusion_cli.checkpoint import Checkpoint
from diffusion_cli.errors import CheckpointError


class Derived:
    """The derived values of one checkpoint's weights.

    Args:
        found: The checkpoint; other weights have another folder.
        weights: `ema`, `ema-<half-life>` or `raw`.
    """

    def __init__(self, found: Checkpoint, weights: str = "ema") -> None:
        self.folder = found.home / "derived" / f"{found.hash}-{weights}"

    def write(
        self, name: str, tensors: Mapping[str, Tensor], about: Mapping[str, Any]
    ) -> None:
        """Keep tensors under a name, whole or not at all; `about` says of what."""
        files: dict[str, artifact.Content] = {
            "values.safetensors": lambda: tensorfile.content(tensors)
        }
        artifact.write(self.folder / name, files, dict(about))

    def holds(self, name: str, about: Mapping[str, Any]) -> bool:
        """Whether what is kept under a name is whole, and of just that."""
        try:
            kept = artifact.verify(self.folder / name)
        except CheckpointError:
            return False
        return all(kept.get(key) == value for key, value in about.items())

    def read(self, name: str) -> dict[str, Tensor] | None:
        """What was kept under a name, its hashes checked; None if there is nothing."""
        folder = self.folder / name
        if not (folder / "manifest.json").exists():
            return None
        if "values.safetensors" not in artifact.verify(folder)["files"]:
            raise artifact.broken(folder, "manifest.json lists no values")
        return tensorfile.read(folder / "values.safetensors")
