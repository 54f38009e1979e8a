"""`dcli runs`: list, show and compare what runs left behind; free of torch."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from diffusion_cli import comparison, records
from diffusion_cli.apart import age, aligned, typed
from diffusion_cli.errors import ConfigError
from diffusion_cli.paths import shown
from diffusion_cli.records import Record
from diffusion_cli.registry import near

SORTS: dict[str, Callable[[Record], Any]] = {
    "time": lambda record: record.time,
    "name": lambda record: record.name,
    "step": lambda record: record.step,
    "loss": lambda record: record.last.get("loss", float("inf")),
}
_WIDTH = 44  # characters of a value in a table of differences


def run(settings: dict[str, Any], overrides: list[str]) -> None:
    """`ls`, `show` or `diff`; `--json` for scripts."""
    plain = "--json" not in overrides
    verb, *words = [word for word in overrides if word != "--json"] or [""]
    verbs = {"ls": _list, "show": _show, "diff": _diff}
    if verb not in verbs:
        what = f"there is no `{verb}`{near(verb, verbs)}" if verb else "ls, show, diff?"
        raise ConfigError(f"runs: {what}", "dcli runs ls")
    if strange := [word for word in words if word.startswith("-")]:
        raise ConfigError(f"runs {verb}: `{strange[0]}`?", "dcli runs --help")
    verbs[verb](words, plain)


def _list(words: list[str], plain: bool) -> None:
    """One line for every run of some folders."""
    keys = [word.partition("=")[2] for word in words if word.startswith("sort=")]
    key = keys[-1] if keys else "time"
    if key not in SORTS:
        message = f"runs ls: cannot sort by `{key}`{near(key, SORTS)}"
        raise ConfigError(message, f"sort= takes {', '.join(SORTS)}")
    words = [word for word in words if not word.startswith("sort=")]
    if not words and not Path("runs").is_dir():
        message = f"runs ls: there is no folder runs in {shown(str(Path.cwd()))}"
        raise ConfigError(message, "dcli runs ls FOLDER")
    if not words and not any(records.within(Path("runs"))):
        print("runs ls: no run in runs yet", file=sys.stderr)
    found = _gathered(words or ["runs"], "ls") if words else _all(Path("runs"))
    found.sort(key=SORTS[key])
    if not plain:
        print(json.dumps([_brief(record) for record in found], indent=1))
        return
    now = time.time()
    rows = [
        (
            shown(str(record.path)),
            record.status["status"],
            f"{record.step}",
            f"{record.last['loss']:.4g}" if "loss" in record.last else "",
            age(now - record.time),
            words if len(words) <= _WIDTH else f"{words[: _WIDTH - 1]}…",
        )
        for record, words in zip(found, typed(found), strict=True)
    ]
    print(
        "\n".join(aligned([("run", "status", "step", "loss", "age", "typed"), *rows]))
    )


def _all(folder: Path) -> list[Record]:
    return [Record(path) for path in records.within(folder)]


def _brief(record: Record) -> dict[str, Any]:
    """What `ls` reads: no config."""
    when = time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(record.time))
    values = {k: v for k, v in record.last.items() if k != "step"}
    path = str(record.path)
    return {
        "path": path,
        "time": when,
        **record.status,
        "step": record.step,
        "metrics": values,
    }


def _show(words: list[str], plain: bool) -> None:
    """All that is known of runs."""
    for i, record in enumerate(_gathered(words, "show")):
        if plain:
            print("\n".join([""] * bool(i) + list(_text(record))))
        else:
            print(json.dumps(_whole(record), default=str))


def _whole(record: Record) -> dict[str, Any]:
    told = ("config", "overrides", "environment", "measured")
    return _brief(record) | {key: getattr(record, key) for key in told}


def _text(record: Record) -> Iterator[str]:
    """One run for reading."""
    status, flat = record.status, record.flat
    yield shown(str(record.path))
    whole = f" of {record.steps}" if record.steps else ""
    why = f": {status['why']}" if status.get("why") else ""
    yield f"  {'status':<18} {status['status']} at step {record.step}{whole}{why}"
    if record.command:
        yield f"  {'command':<18} {record.command}"
    roles = [key for key in record.config if f"{key}.name" in flat]
    for role in roles:
        inner = {k: v for k, v in flat.items() if k.startswith(f"{role}.")}
        name = inner.pop(f"{role}.name")
        rest = " ".join(f"{k.partition('.')[2]}={_short(v)}" for k, v in inner.items())
        yield f"  {role:<18} {name}  {rest}".rstrip()
    for name, value in record.last.items():
        if name != "step" and not name.startswith("loss_t"):
            yield f"  {name:<18} {value:.5g}"
    yield from _measured(record)
    for key in ("versions.dcli", "versions.torch", "machine.name", "git.commit"):
        if record.environment.get(key):
            dirty = key == "git.commit" and record.environment.get("git.dirty")
            tail = ", with changes" if dirty else ""
            label = key.partition(".")[2] if key != "machine.name" else "machine"
            yield f"  {label:<18} {_short(record.environment[key])}{tail}"


def _measured(record: Record) -> Iterator[str]:
    """What was measured of a run: how its samples were drawn, then the numbers."""
    columns, rows = comparison.measured([record])
    for row in rows:
        yield f"  {'measured':<18} {row.how}"
        for at, cell in sorted(row.values.items()):
            note = f" ({cell.note})" if cell.note else ""
            told = f"{cell.value}{note}  {columns[at].protocol}".rstrip()
            yield f"    {columns[at].name:<26} {told}"


def _diff(words: list[str], plain: bool) -> None:
    """The keys whose values differ, a column for each run."""
    found = _gathered(words, "diff")
    if len(found) < 2:
        raise ConfigError("runs diff: two runs at least", "dcli runs diff RUN RUN")
    table = records.differences(found)
    if not plain:
        told = {"runs": [str(record.path) for record in found], "differences": table}
        print(json.dumps(told, indent=1))
        return
    if not table:
        print("runs diff: no difference", file=sys.stderr)
        return
    head = ("", *(record.name for record in found))
    rows = [(key, *map(_short, row)) for key, row in table.items()]
    print("\n".join(aligned([head, *rows])))


def _gathered(words: list[str], verb: str) -> list[Record]:
    told: list[str] = []
    found = records.gather(words, told, f"runs {verb}")
    for text in told:
        print(f"passed over: {shown(text)}", file=sys.stderr)
    return found


def _short(value: Any) -> str:
    """A value in one line."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    text = "-" if value is None else text.replace("\n", " ")
    return text if len(text) <= _WIDTH else f"{text[: _WIDTH - 1]}…"
