"""What runs left behind, read back without torch; whatever is missing or torn is empty.

Folders come from anywhere: their text is data, and nothing in it is trusted or run.
"""

from __future__ import annotations

import json
import os
import shlex
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

from diffusion_cli import foreign, runs
from diffusion_cli.errors import ConfigError
from diffusion_cli.identity import dotted
from diffusion_cli.paths import shown, typed

Values = dict[str, Any]
_MARKS = ("status.json", "overrides.yaml", "checkpoints")  # any of them makes a run
_TAIL = 1 << 13  # bytes; the last lines of a log are within them
_PLAIN = ("name", "out", "fresh")  # where a run lies, not what it is


class Record:
    """A run folder as it was left.

    Args:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, shown(path.name or path.resolve().name)

    @cached_property
    def status(self) -> Values:
        """`status.json`; `killed` is a run that says it runs and does not."""
        found = foreign.json_in(self.path / "status.json")
        if not isinstance(found.get("status"), str) or not _at(found):
            return {"status": "unknown"}
        here = found.get("host") == socket.gethostname()
        if found["status"] == "running" and here and not _alive(found.get("pid")):
            found["status"] = "killed"
        return found

    @cached_property
    def config(self) -> Values:
        """`config.yaml`."""
        found = foreign.yaml_in(self.path / "config.yaml")
        return found if isinstance(found, dict) else {}

    @cached_property
    def flat(self) -> Values:
        """`config.yaml` as `{"trainer.steps": 100}`."""
        return dotted({str(key): value for key, value in self.config.items()})

    @cached_property
    def overrides(self) -> list[str] | None:
        """The arguments of the command that made it, as they can be typed again."""
        found = foreign.yaml_in(self.path / "overrides.yaml")
        if not isinstance(found, list):
            return None
        return [str(word).removeprefix("++") for word in found]

    @property
    def command(self) -> str:
        """The command that made it, as a shell reads it; empty if that is not known."""
        words = self.overrides
        return "" if words is None else shlex.join(["dcli", "train", *words])

    @cached_property
    def environment(self) -> Values:
        """`environment.json`, flat: `versions.torch`, `machine.name`, `git.commit`."""
        return dotted(foreign.json_in(self.path / "environment.json"))

    @cached_property
    def metrics(self) -> list[Values]:
        """Every whole line of `metrics.jsonl`."""
        return lines(self.path / "metrics.jsonl")

    @cached_property
    def evaluated(self) -> list[Values]:
        """The lines of `metrics.jsonl` that tell what the run measured of itself."""
        return [line for line in self.metrics if line.get("measured")]

    @cached_property
    def last(self) -> Values:
        """The newest value of everything in the end of `metrics.jsonl`, quickly."""
        return tail(self.path / "metrics.jsonl")

    def forget(self) -> None:
        """Let go of the lines of the log, of which many runs have more than fits."""
        _ = self.evaluated
        self.__dict__.pop("metrics", None)

    @cached_property
    def measured(self) -> list[Values]:
        """What `dcli eval` kept, oldest first."""
        found = sorted(self.path.glob("derived/*/metrics.jsonl"), key=_time)
        return [line for path in found for line in entries(path) if _is_measure(line)]

    @cached_property
    def steps(self) -> int | None:
        """Steps of the whole run."""
        steps = self.flat.get("trainer.steps")
        return steps if isinstance(steps, int) else None

    @property
    def step(self) -> int:
        """The last step known of; `status.json` names the last one saved."""
        return int(max(self.status.get("step", 0), self.last.get("step", 0)))

    @property
    def time(self) -> float:
        """When it last said how it goes, in seconds since 1970."""
        return _time(self.path / "status.json") or _time(self.path)


def gather(words: Sequence[str], told: list[str], verb: str) -> list[Record]:
    """The runs that are meant: folders, folders of runs, beginnings of names.

    Args:
        words: What was typed.
        told: Gains what was passed over, because it is there but is no run.
        verb: For messages.
    """
    found: dict[Path, Record] = {}
    known: list[Path] = []
    for word in words:
        place = typed(word, verb)
        several = [place] if is_run(place) else list(within(place))
        if place.name == "sweeps" and len(words) > 1 and not several:
            continue  # it holds the jobs of `-m`, and `runs/*` was typed
        if not several and place.exists():
            told.append(f"{word}: is no run, and holds none")
        elif not several:
            known = known or list(within(Path("runs")))
            several = [_named(word, verb, known)]
        for path in several:
            found.setdefault(path.resolve(), Record(path))
    if not found:
        what = "; ".join(told) or "name at least one run"
        raise ConfigError(f"{verb}: {what}", f"dcli {verb} runs/*")
    return list(found.values())


def is_run(path: Path) -> bool:
    """Whether a folder was made by `dcli train`."""
    return any(os.path.exists(f"{path}/{mark}") for mark in _MARKS)


def within(folder: Path) -> Iterator[Path]:
    """The runs in a folder, by name."""
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    except OSError:
        return
    paths = (folder / name for name in names)
    yield from (path for path in paths if is_run(path))


def _named(word: str, verb: str, known: Sequence[Path]) -> Path:
    """The run among those known whose name begins so."""
    matches = runs.beginning(word.removeprefix("runs/"), known)
    if len(matches) == 1:
        return matches[0]
    if matches:
        from diffusion_cli import apart  # it reads runs by this file

        message = f"{verb}: `{word}` could be {apart.told(matches)}"
        raise ConfigError(message, "type more of the name")
    nearest = runs.nearest(word, known)
    raise ConfigError(f"{verb}: there is no `{word}`{nearest}", "dcli runs ls")


def differences(records: Sequence[Record], every: bool = True) -> dict[str, list[Any]]:
    """Keys whose values differ, with the value of each run; None where it has none.

    Args:
        records: Two or more.
        every: Versions and machine as well as the config.
    """
    found = []
    for record in records:
        values = {k: v for k, v in record.flat.items() if k not in _PLAIN}
        found.append(values | (record.environment if every else {}))
    first = dict.fromkeys(key for values in found for key in values)
    heads = list(dict.fromkeys(key.partition(".")[0] for key in first))

    def order(key: str) -> tuple[int, bool, int, str]:  # by role, what is chosen first
        head, named = key.partition(".")[0], key.endswith(".name")
        return heads.index(head), not named, named * key.count("."), key

    keys = sorted(first, key=order)
    table = {key: [values.get(key) for values in found] for key in keys}
    return {k: row for k, row in table.items() if any(v != row[0] for v in row)}


def lines(metrics: Path) -> list[Values]:
    """The lines of a `metrics.jsonl` up to one without a step."""
    whole = takewhile(lambda line: type(line.get("step")) is int, entries(metrics))
    return list(filter(_at, whole))


def entries(path: Path) -> Iterator[Values]:
    """The objects in a file of one JSON object a line; torn lines are passed over."""
    try:
        with foreign.opened(path) as file:
            for line in file:
                with suppress(ValueError, RecursionError):
                    values = json.loads(line)
                    if isinstance(values, dict):
                        yield values
    except OSError:
        return


def tail(metrics: Path) -> Values:
    """The newest finite value of everything in the last lines of a `metrics.jsonl`."""
    try:
        with foreign.opened(metrics) as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
            last = file.read().splitlines()
    except OSError:
        return {}
    newest: Values = {}
    for line in reversed(last[-64:]):
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(values, dict) and _at(values):
            newest = {k: v for k, v in values.items() if finite(v)} | newest
            if "loss" in newest:
                break
    return newest


def finite(value: Any) -> bool:
    """Whether a value is a number that can be shown."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def _at(line: Values) -> bool:
    """Whether a line says at which step it was written."""
    return foreign.word_sized(line.get("step"))


def _is_measure(line: Values) -> bool:
    return isinstance(line.get("metric"), dict) and isinstance(line.get("values"), dict)


def _time(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _alive(pid: Any) -> bool:
    """Whether a process of this machine runs."""
    try:
        os.kill(int(pid), 0)
    except (OSError, TypeError, ValueError, OverflowError) as error:
        return isinstance(error, PermissionError)  # another user's
    return True
