"""What was measured of runs; unequal protocols are never side by side."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from diffusion_cli import records
from diffusion_cli.identity import dotted, same_data
from diffusion_cli.records import Record

_BESIDE = ("_sd", "_se", "_floor")  # endings of what is said beside a number
_NUMBERS = 12  # of a metric in the table; more, or those of another, are a picture
_SHOWN = ("steps", "scale")  # arguments of samplers and guidance that are always told
_DRAWN = ("step", "weights", "sampler", "guidance", "label", "dtype", "seed")


class Cell(NamedTuple):
    """A value, and what stands under it."""

    value: str
    note: str = ""


class Row(NamedTuple):
    """One way to draw samples of one run, and what was measured of it."""

    run: int
    how: str
    values: Mapping[int, Cell]  # by number of the column


class Column(NamedTuple):
    """A measured number with its protocol: unequal protocols are unequal columns."""

    name: str
    protocol: str


def measured(found: Sequence[Record]) -> tuple[list[Column], list[Row]]:
    """What `dcli eval` found: a column for each number under one protocol.

    A row is a way to draw (weights, sampler, guidance, seed) from one checkpoint; of
    what was measured twice in the same way, the newer number stays. Of what a run
    measured of itself on its way, the last is here; `own` has all.
    """
    columns: dict[Column, int] = {}
    rows: dict[tuple[int, str], dict[int, Cell]] = {}
    ways: dict[tuple[int, str], Mapping[str, Any]] = {}
    for number, record in enumerate(found):
        for line in _last(record.measured):
            values, told = line["values"], protocol(line)
            if len(values) > _NUMBERS or isinstance(line["metric"].get("of"), Mapping):
                continue
            way = {key: _named(line.get(key)) for key in _DRAWN}
            way["seeds"] = line["metric"].get("seeds") or 1
            key = number, json.dumps(way, sort_keys=True, default=str)
            ways[key] = way
            cells = rows.setdefault(key, {})
            for name, value in values.items():
                if name.endswith(_BESIDE) or not records.finite(value):
                    continue
                metric = str(line["metric"].get("name"))
                whole = name if name.startswith(metric) else f"{metric} {name}"
                at = columns.setdefault(Column(whole, told), len(columns))
                cells[at] = _cell(name, values)
    texts = _texts(ways)
    return list(columns), [Row(k[0], texts[k], cells) for k, cells in rows.items()]


def _last(lines: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """All but what a run measured of itself before the last step at which it did."""
    own = [line.get("step") for line in lines if line.get("training")]
    last = max((step for step in own if type(step) is int), default=None)
    for line in lines:
        if not line.get("training") or line.get("step") == last:
            yield line


def protocol(line: Mapping[str, Any]) -> str:
    """What a metric was told, of which data, and the word that it added itself."""
    told = [_words(line["metric"])]
    if isinstance(line.get("dataset"), Mapping):
        told += [_words({"of": same_data(line["dataset"])})]
    told += [f"nfe={line['nfe']}"] if line.get("nfe") is not None else []
    return " ".join([*told, str(line.get("protocol") or "")]).strip()


def own(line: Mapping[str, Any]) -> Iterator[tuple[str, float, str]]:
    """Name, value and protocol of every number of a line that a metric found."""
    found = line.get("measured")
    about = found if isinstance(found, Mapping) else {}
    for metric, told in about.items():
        if not isinstance(told, Mapping) or not isinstance(told.get("metric"), Mapping):
            continue
        for name, value in line.items():
            mine = name == metric or name.startswith(f"{metric}_")
            longer = any(
                other != metric and other.startswith(metric) and name.startswith(other)
                for other in about
            )
            if mine and not longer and records.finite(value):
                if not name.endswith(("_sd", "_se")):
                    yield name, float(value), protocol(told)


def _words(node: Mapping[str, Any]) -> str:
    """Arguments as they are typed, without the node's name and how often it drew."""
    own = {k: v for k, v in node.items() if k not in ("name", "seeds")}
    flat = {k: v for k, v in dotted(own).items() if v is not None}
    return " ".join(
        f"{key.removesuffix('.name')}={_text(value)}" for key, value in flat.items()
    )


def _named(value: Any) -> Any:
    """A stack of components by their names, other values as they are."""
    if isinstance(value, list) and all(isinstance(each, Mapping) for each in value):
        return {str(each.get("name")): each for each in value}
    return value


def _texts(ways: Mapping[tuple[int, str], Mapping[str, Any]]) -> dict[Any, str]:
    """Each way in words; where two of a run would read alike, with what differs."""
    brief: dict[tuple[int, str], list[tuple[int, str]]] = {}
    for key, way in ways.items():
        brief.setdefault((key[0], _how(way)), []).append(key)
    texts = {}
    for (_, text), keys in brief.items():
        flat = [dotted(ways[key]) for key in keys]
        names = dict.fromkeys(name for one in flat for name in one)
        apart = [n for n in names if len({_text(one.get(n)) for one in flat}) > 1]
        for key, one in zip(keys, flat, strict=True):
            rest = [f"{name}={_text(one.get(name))}" for name in apart]
            texts[key] = ", ".join([text, *rest])
    return texts


def _how(way: Mapping[str, Any]) -> str:
    """How the samples of a measurement were drawn, briefly."""
    words = [f"step {way['step']}", str(way["weights"])]
    guidance = way["guidance"]
    stack = guidance.values() if isinstance(guidance, Mapping) else ()
    for node in (way["sampler"], *stack):
        if isinstance(node, Mapping):
            kept = [f"{k}={_text(node[k])}" for k in _SHOWN if node.get(k) is not None]
            words.append(" ".join([str(node.get("name")), *kept]))
    words += [f"label {_text(way['label'])}"] if way["label"] is not None else []
    first, seeds = way["seed"], way["seeds"]
    several = type(first) is int and type(seeds) is int and seeds > 1
    seed = f"seeds {first} to {first + seeds - 1}" if several else f"seed {first}"
    return ", ".join([*words, seed])


def _cell(name: str, values: Mapping[str, Any]) -> Cell:
    """A number with its spread over seeds or its standard error, and its floor."""
    over, error, floor = (values.get(f"{name}{end}") for end in _BESIDE)
    error = over if records.finite(over) else error
    spread = f" ± {error:.2g}" if records.finite(error) else ""
    note = f"floor {floor:.5g}" if records.finite(floor) else ""
    return Cell(f"{values[name]:.5g}{spread}", note)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
