"""The folder of a run: one owner at a time, one config for ever, and its status.

config.yaml overrides.yaml environment.json changes.diff   what was run, and on what
status.json metrics.jsonl tensorboard/ samples/ logs/      how it goes
checkpoints/                                               what it learnt
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import torch
import yaml  # type: ignore[import-untyped]
from filelock import FileLock, Timeout

from diffusion_cli import environment
from diffusion_cli.artifact import storage
from diffusion_cli.errors import ConfigError, StorageError
from diffusion_cli.identity import decides, dotted

Status = Literal["running", "stopped", "failed", "complete"]
_PATIENCE = 0.5  # seconds to wait for a lock
_log = logging.getLogger(__name__)
_LENGTHLESS = ("constant", "inverse_sqrt")  # rates that do not depend on the length


class RunFolder:
    """A run folder; while it is entered, no other program may enter it.

    Args:
        path: The folder; made on entering.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self._lock = FileLock(path / ".lock", timeout=_PATIENCE)
        self._started = time.strftime("%Y-%m-%dT%H:%M:%S%z")

    def __enter__(self) -> RunFolder:
        with storage(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire()
            except Timeout as error:
                holder = self.status()
                pid, host, since = (holder.get(k) for k in ("pid", "host", "started"))
                who = f"pid {pid} on {host} since {since}"
                message = f"{self.path}: another run works here: {who}"
                raise StorageError(
                    message, "wait for it, or out=<another folder>", "LOCKED"
                ) from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lock.release()

    def status(self) -> dict[str, Any]:
        """What `status.json` says; empty if it says nothing."""
        try:
            found = json.loads((self.path / "status.json").read_text())
        except (OSError, ValueError):
            return {}
        sound = isinstance(found, dict) and isinstance(found.get("step"), int)
        return found if sound else {}

    def report(self, status: Status, step: int, why: str = "") -> None:
        """Write `status.json`."""
        values = {
            "status": status,
            "step": step,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "started": self._started,
        }
        self.write("status.json", json.dumps(values | ({"why": why} if why else {})))

    def config(self) -> dict[str, Any] | None:
        """The config that the folder was made with; None if it is new."""
        try:
            found = yaml.safe_load((self.path / "config.yaml").read_text())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
            raise ConfigError(f"{self.path}/config.yaml: cannot be read") from error
        if not isinstance(found, dict) or not found:
            return None
        trainer = found.get("trainer")
        if not isinstance(trainer, dict) or "precision" not in trainer:
            raise ConfigError(f"{self.path}/config.yaml: is not the config of a run")
        return found

    def describe(
        self, config: Mapping[str, Any], overrides: Sequence[str], device: torch.device
    ) -> None:
        """Write what is run, and on what."""
        git = environment.git()
        changes = git.pop("diff") if git else ""
        about = {
            "versions": environment.versions(),
            "machine": environment.machine(device),
            "git": git,
        }
        self.write("config.yaml", yaml.safe_dump(dict(config), sort_keys=False))
        self.write("overrides.yaml", yaml.safe_dump(list(overrides)))
        self.write("environment.json", json.dumps(about, indent=1))
        if changes:
            self.write("changes.diff", changes)

    def fail(self, error: BaseException, step: int, rank: int) -> None:
        """Keep what ended the run, and where it stands; the first rank reports."""
        if isinstance(error, Exception):
            text = "".join(traceback.format_exception(error))
            self.write(f"logs/error-rank{rank}.txt", text)
            if rank == 0:
                self.report("failed", step, str(error))
        elif rank == 0:
            self.report("stopped", step)

    def write(self, name: str, text: str) -> Path:
        """Replace a small file as a whole."""
        path = self.path / name
        with storage(path):
            path.parent.mkdir(exist_ok=True)
            part = path.with_name(f".{path.name}.part")
            part.write_text(text, encoding="utf-8")
            part.replace(path)
        return path

    def lost(self) -> None:
        """Set aside what is left of a run whose checkpoints are gone."""
        if step := self.status().get("step", 0):
            _log.warning("%s: the checkpoint of step %d is gone", self.path, step)
            self.set_aside()

    def set_aside(self) -> None:
        """Move everything but the lock into `old-<n>`, for a fresh start."""
        members = [
            path
            for path in self.path.iterdir()
            if path.name != ".lock" and not path.name.startswith("old-")
        ]
        if members:
            old = self.path / f"old-{len(list(self.path.glob('old-*')))}"
            with storage(old):
                old.mkdir()
                for path in members:
                    path.replace(old / path.name)
            _log.warning("what was in %s lies in %s", self.path, old.name)


def agree(path: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Refuse another config in a run's folder; more steps are fine if nothing bends."""
    before, after = dotted(old), dotted(new)
    keys = [
        key
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and decides(key)
    ]
    constant = new["trainer"]["decay"] in _LENGTHLESS
    if not keys or (keys == ["trainer.steps"] and constant):
        return
    lines = [f"{key}: {before.get(key)!r} -> {after.get(key)!r}" for key in keys]
    text = "\n  ".join([f"{path}: holds another config", *lines])
    hint = "out=<another folder>, or fresh=true"
    if keys == ["trainer.steps"]:
        hint = f"the rate depends on the length: out=<another> init={path}"
    raise ConfigError(text, hint)
