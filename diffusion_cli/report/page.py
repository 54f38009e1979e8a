"""What the page shows of each run and of all of them; no markup."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from diffusion_cli import __version__, records
from diffusion_cli.comparison import Cell, Column, measured, own
from diffusion_cli.identity import decides
from diffusion_cli.paths import assignment
from diffusion_cli.records import Record
from diffusion_cli.report import pictures
from diffusion_cli.report.chart import Chart, Curve, chart, thinned
from diffusion_cli.report.pictures import Picture

CHOICES = ("dataset", "process", "network", "sampler")
_VERSIONS = ("dcli", "torch", "python")


@dataclass(frozen=True)
class Card:
    """One run, whole."""

    record: Record
    number: int
    facts: list[tuple[str, str]]
    charts: list[Chart]
    tile: Picture | None
    film: Picture | None
    measured: list[Picture]
    pictures: list[Picture]


def page(found: Sequence[Record]) -> str:
    """The HTML of a report; text from the runs is escaped, whatever it is."""
    source = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    cards, losses = [], []
    for number, record in enumerate(found):
        cards.append(_card(record, number))
        losses.append(_curve(record, "loss", number))
        record.forget()
    columns, rows = measured(found)
    return environment.from_string(source).render(
        version=__version__,
        date=time.strftime("%Y-%m-%d %H:%M"),
        cards=cards,
        shared=_shared(found),
        swept=_swept(found),
        loss=chart(losses, "step", "loss"),
        evaluated=list(while_training(found)),
        columns=columns,
        rows=rows,
        protocols=list(dict.fromkeys(c.protocol for c in columns if c.protocol)),
        differences=_differences(found),
        style=Markup(Path(__file__).with_name("page.css").read_text(encoding="utf-8")),
    )


def _card(record: Record, number: int) -> Card:
    facts = [(name, value) for name, value in _facts(record) if value]
    rest = pictures.previews(record)
    tile = pictures.drawn(record, "grid.png")
    if tile is None and rest:
        tile, rest = rest[0], rest[1:]
    film = pictures.drawn(record, "trajectory.gif")
    charts = [found for found in _charts(record, number) if found]
    found = pictures.derived(record)
    return Card(record, number, facts, charts, tile, film, found, rest)


def _facts(record: Record) -> Iterator[tuple[str, str]]:
    """What is worth knowing of one run, beside its charts."""
    about, last = record.environment, record.last
    whole = f" of {record.steps}" if record.steps else ""
    yield "status", f"{record.status['status']} at step {record.step}{whole}"
    yield "why", str(record.status.get("why") or "")
    yield "to make it again", record.command
    yield "to sample it", f"dcli sample {assignment('ckpt', str(record.path))}"
    for role in CHOICES:
        inner = record.flat
        rest = [
            f"{key.partition('.')[2]}={_short(value)}"
            for key, value in inner.items()
            if key.startswith(f"{role}.") and key != f"{role}.name"
        ]
        yield role, " ".join([str(inner.get(f"{role}.name", "")), *rest]).strip()
    speed, memory = last.get("images_per_second"), last.get("memory_gib")
    yield "speed", f"{speed:,.1f} samples per second" if speed else ""
    yield "memory", f"{memory:.3g} GiB" if memory else ""
    yield (
        "machine",
        ", ".join(
            str(about[key])
            for key in ("machine.name", "machine.platform", "machine.processor")
            if about.get(key)
        ),
    )
    found = [(name, about.get(f"versions.{name}")) for name in _VERSIONS]
    yield "versions", ", ".join(f"{name} {value}" for name, value in found if value)
    changed = ", with changes (changes.diff)" if about.get("git.dirty") else ""
    yield "commit", f"{about.get('git.commit') or ''}{changed}"


def _charts(record: Record, number: int) -> Iterator[Chart | None]:
    """Loss by time now, and the gradient's norm."""
    last = next((line for line in reversed(record.metrics) if "loss" in line), {})
    levels = [
        (float(key[6:]) + 0.05, value)
        for key, value in sorted(last.items())
        if key.startswith("loss_t") and records.finite(value) and _number(key[6:])
    ]
    own = [Curve(number, record.name, levels)]
    yield chart(own, "time, 0 is data", "loss, last log", dots=True, low=True)
    norm = _curve(record, "grad_norm", number)
    yield chart([norm], "step", "gradient norm", low=True)


def _curve(record: Record, key: str, number: int) -> Curve:
    """A metric over the steps."""
    points = [
        (float(line["step"]), float(line[key]))
        for line in record.metrics
        if records.finite(line.get(key))
    ]
    return Curve(number, record.name, thinned(points))


def while_training(found: Sequence[Record]) -> Iterator[Chart]:
    """Curves over the steps of what runs measured of themselves, by protocol."""
    curves: dict[Column, dict[int, list[tuple[float, float]]]] = {}
    floors: dict[Column, set[str]] = {}
    for number, record in enumerate(found):
        for line in record.evaluated:
            for name, value, told in own(line):
                column = Column(name.removesuffix("_floor"), told)
                if name.endswith("_floor"):
                    floors.setdefault(column, set()).add(f"{value:.4g}")
                else:
                    runs = curves.setdefault(column, {})
                    runs.setdefault(number, []).append((float(line["step"]), value))
    for column, runs in curves.items():
        series = [Curve(n, found[n].name, points) for n, points in runs.items()]
        floor = "; floor " + ", ".join(sorted(floors.get(column, ())))
        name = f"{column.name} {column.protocol}".strip() + floor * (column in floors)
        if made := chart(series, "step", name, log_y=False, dots=True):
            yield made


def _shared(found: Sequence[Record]) -> list[tuple[str, str]]:
    """The choices that all runs have in common."""
    said = []
    for role in CHOICES:
        node, *others = [record.config.get(role) for record in found]
        if isinstance(node, dict) and all(other == node for other in others):
            said.append((role, str(node.get("name"))))
    return said


def _swept(found: Sequence[Record]) -> dict[str, list[str]]:
    """What was typed differently, a few keys at most: the axes of a sweep."""
    typed = [
        dict(word.lstrip("+").partition("=")[::2] for word in record.overrides or ())
        for record in found
    ]
    keys = dict.fromkeys(key for words in typed for key in words if decides(key))
    table = {key: [words.get(key, "") for words in typed] for key in keys}
    differing = [key for key, row in table.items() if len(set(row)) > 1]
    return {key: [_short(value) for value in table[key]] for key in differing[:5]}


def _differences(found: Sequence[Record]) -> dict[str, list[Cell]]:
    """Where configs differ in what decides the result.

    A role of which runs have different components is one row, its arguments small.
    """
    table = records.differences(found, every=False)
    table = {key: row for key, row in table.items() if decides(key)}
    chosen = {key.partition(".")[0] for key in table if key.endswith(".name")}
    rows: dict[str, list[Cell]] = {}
    for key, row in table.items():
        role, _, _ = key.partition(".")
        if role not in chosen:
            rows[key] = [Cell(_short(value)) for value in row]
        elif role not in rows:
            own = {k: v for k, v in table.items() if k.startswith(f"{role}.")}
            rows[role] = [_component(own, run) for run in range(len(found))]
    return rows


def _component(table: Mapping[str, list[Any]], run: int) -> Cell:
    """The part of one run in a role: names, and arguments that differ."""
    values = {k.partition(".")[2]: row[run] for k, row in table.items()}
    known = {k: _short(v) for k, v in values.items() if v is not None}
    names = [v for k, v in known.items() if k == "name" or k.endswith(".name")]
    rest = [f"{k}={v}" for k, v in known.items() if not f".{k}".endswith(".name")]
    return Cell(", ".join(names), "\n".join(rest))


def _number(text: str) -> bool:
    try:
        return bool(float(text) >= 0)
    except ValueError:
        return False


def _short(value: Any) -> str:
    """A value of a config in one line."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    text = "" if value is None else text
    return text if len(text) <= 80 else f"{text[:79]}…"
