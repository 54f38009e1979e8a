"""The rows of the GPU benchmark as tables, between marks of their own in the docs."""

from __future__ import annotations

from typing import Any

from goals import GOALS
from peers import ROOT

PAGE = ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- gpu -->", "<!-- /gpu -->"
TITLES = {
    "ceilings": "What the device can do",
    "training": "A training step of the CIFAR-10 network",
    "tail": "Optimiser and average of weights, 35.7 million weights",
    "norms": "Norm and silu, forward and backward, bf16, channels last",
    "sampling": "50 steps of DDIM, CIFAR-10 network",
    "data": "From the data to the device",
    "stalls": "Steps around a checkpoint",
    "sanity": "The same losses",
    "real": "CIFAR-10, from nothing to samples",
}
STEP, TIMES = "dcli, as its config runs it", "time, dcli = 1"
Row = dict[str, Any]


def tell(rows: list[Row]) -> None:
    """Write the tables into the page."""
    text = PAGE.read_text()
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    body = "\n".join([BEGIN, "", *tables(rows), "", END])
    PAGE.write_text(before + body + after)


def tables(rows: list[Row]) -> list[str]:
    """A table for each item, what could not be measured, and on what it was."""
    lines = [*judged(rows), ""]
    for item in dict.fromkeys(row["item"] for row in rows if row["item"] != "about"):
        own = [row for row in rows if row["item"] == item]
        lines += [f"### {TITLES[item]}", "", *table(own)]
        for row in own:
            if "fault" in row:
                where = f", batch {row['batch']}" if "batch" in row else ""
                side = f"{row['side']}{where}: " if row["side"] else ""
                lines.append(f"Not measured: {side}{row['fault']}.  ")
        lines.append("")
    for row in rows:
        if row["item"] == "about":
            lines += origin(row)
    return lines


def judged(rows: list[Row]) -> list[str]:
    """A line for each goal that takes a GPU, from the sides of one batch."""
    lines = ["| | What | Wanted | Measured | |", "|---|---|---|---|---|"]
    trained, drawn = sides(rows, "training", 512), sides(rows, "sampling", 1)
    found = {"G16": training(trained), "G17": sampling(drawn)}
    for goal in (goal for goal in GOALS.values() if goal.gpu):
        measured, met = found[goal.name] or ("-", None)
        verdict = {None: "not measured", True: "met", False: "not met"}[met]
        lines.append(
            f"| {goal.name} | {goal.what} | {goal.wanted} | {measured} | {verdict} |"
        )
    return lines


def sides(rows: list[Row], item: str, batch: int) -> dict[str, Row]:
    """What was measured first of every side at a batch."""
    found: dict[str, Row] = {}
    for row in rows:
        if (row["item"], row.get("batch")) == (item, batch) and "fault" not in row:
            found.setdefault(row["side"], row)
    return found


def training(found: dict[str, Row]) -> tuple[str, bool] | None:
    """G16."""
    own, example = found.get(STEP), found.get("diffusers, its example, fp32")
    if own is None or example is None:
        return None
    others = [row[TIMES] for side, row in found.items() if side.startswith("diffusers")]
    rate, first, best = own["img/s"], example[TIMES], min(others)
    told = f"{first:.3g}x, {best:.3g}x of its best, {rate:,.0f} img/s"
    return told, first >= 3 and best >= 1.3 and rate >= 7500


def sampling(found: dict[str, Row]) -> tuple[str, bool] | None:
    """G17."""
    other = found.get("DDIMPipeline, fp32")
    if other is None or TIMES not in other:
        return None
    return f"{other[TIMES]:.3g}x", other[TIMES] >= 4


def table(rows: list[Row]) -> list[str]:
    """The rows that were measured, a column for each number that one of them has."""
    measured = [rounded(row) for row in rows if "fault" not in row]
    keys = dict.fromkeys(key for row in measured for key in row)
    columns = [key for key in keys if key not in ("item", "side")]
    if not measured:
        return []
    lines = [
        "| " + " | ".join(["", *columns]) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for row in measured:
        cells = [shown(row.get(column, "-")) for column in columns]
        lines.append("| " + " | ".join([row["side"], *cells]) + " |")
    return [*lines, ""]


def origin(about: Row) -> list[str]:
    """How, when and on what."""
    names = ("dcli", "python", "torch", "torchvision", "cuda", "cudnn", "diffusers")
    versions = ", ".join(f"{name} {about[name]}" for name in names)
    small = "A small run, whose numbers mean nothing. " if about["small"] else ""
    lines = [f"`{about['command']}`, {about['when']}.  "]
    return [*lines, f"{small}{about['machine']}. {versions}."]


def rounded(row: Row) -> Row:
    """Numbers with four digits: more are not measured."""
    return {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in row.items()}


def shown(value: object) -> str:
    """A cell: large numbers by thousands, others as they are."""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)
