"""Numbers, curves and pictures in a report: equal ones alone stand together."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import yaml
from conftest import Dcli
from hypothesis import example, given
from hypothesis import strategies as st
from pages import left, measure, report
from PIL import Image
from test_cli import fresh

from diffusion_cli import records
from diffusion_cli.comparison import measured
from diffusion_cli.records import Record
from diffusion_cli.report.chart import Curve, chart, thinned
from diffusion_cli.report.page import while_training


def test_differences_are_those_of_the_configs(tmp_path: Path, dcli: Dcli) -> None:
    left(tmp_path / "runs" / "a")
    run = left(tmp_path / "runs" / "b")
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["process"]["schedule"] = {"name": "karras", "rho": 7}
    config["dataset"]["root"] = "elsewhere"
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    got = dcli("runs", "diff", "a", "b", "--json")
    assert json.loads(got.out)["differences"] == {
        "dataset.root": ["a", "elsewhere"],
        "process.schedule.name": ["linear", "karras"],
        "process.schedule.rho": [None, 7],
    }
    _, page = report(dcli, "runs")
    assert "process" in page.text and "schedule.rho=7" in page.text
    assert "linear" in page.text and "karras" in page.text
    assert "dataset.root" not in page.text, "where data lies decides nothing"
    shutil.copytree(run, tmp_path / "runs" / "c")
    got = dcli("runs", "diff", "b", "c")
    assert (got.code, got.out) == (0, "")


def test_what_a_sweep_varied_is_in_the_overview(tmp_path: Path, dcli: Dcli) -> None:
    """Keys that were typed differently, but not those that decide nothing."""
    typed = {"a": ["process=ddpm", "++optimizer.lr=1e-3", "device=cpu", "seed=0"]}
    typed["b"] = ["process=flow", "++optimizer.lr=1e-2", "device=cuda", "seed=0"]
    for name, words in typed.items():
        run = left(tmp_path / "runs" / name)
        (run / "overrides.yaml").write_text(yaml.safe_dump(words))
    html, _ = report(dcli, "runs")
    table = html.partition("<h2>Overview</h2>")[2].partition("</table>")[0]
    rows = [re.sub("<[^>]*>", " ", row).split() for row in table.split("<tr>")[1:]]
    assert rows == [
        ["run", "process", "optimizer.lr", "status", "step", "loss", "samples/s"],
        ["a", "ddpm", "1e-3", "complete", "4", "0.25"],
        ["b", "flow", "1e-2", "complete", "4", "0.25"],
    ]


def test_samples_of_the_prior_come_first(tmp_path: Path, dcli: Dcli) -> None:
    """A newer way between two seeds does not stand for what the run draws."""
    run = left(tmp_path / "runs" / "a")
    about = {"sampler": {"name": "euler", "steps": 2}, "network_calls_per_sample": 2.0}
    for i, more in enumerate(({}, {"interpolate": None}, {"interpolate": [3, 7]})):
        folder = run / "samples" / f"euler-2-{i}"
        folder.mkdir()
        (folder / "about.json").write_text(json.dumps(about | {"seed": i} | more))
        Image.new("L", (4, 4), i).save(folder / "grid.png")
        os.utime(folder / "grid.png", (i, i))
    _, page = report(dcli, "runs")
    assert "euler, 2 steps, 2 calls each, seed 1" in page.text
    assert not any("interpolate" in text for text in page.text)
    shutil.rmtree(run / "samples" / "euler-2-0")
    shutil.rmtree(run / "samples" / "euler-2-1")
    _, page = report(dcli, "runs")
    assert "euler, 2 steps, 2 calls each, seed 2, interpolate=[3, 7]" in page.text


def test_pictures_of_measurements_are_shown(tmp_path: Path, dcli: Dcli) -> None:
    """The newest of each name: a curve against network calls, for example."""
    run = left(tmp_path / "runs" / "a")
    for i, weights in enumerate(("old", "new")):
        path = run / "derived" / weights / "nfe_curve-0123abcd.png"
        path.parent.mkdir(parents=True)
        Image.new("RGB", (8, 8), (i, 0, 0)).save(path)
        os.utime(path, (i, i))
    _, page = report(dcli, "runs")
    assert path.read_bytes() in page.pictures and len(page.pictures) == 2
    assert "nfe curve" in page.text


def test_unequal_protocols_are_unequal_columns(tmp_path: Path) -> None:
    a, b = left(tmp_path / "a"), left(tmp_path / "b")
    measure(a, 3.0)
    measure(a, 2.0)  # the same once more: the newer one stays
    measure(a, 2.5, seed=1)
    measure(b, 1.0)
    measure(b, 9.0, n=50)
    columns, rows = measured([Record(a), Record(b)])
    assert [column.protocol for column in columns] == ["n=100", "n=50"]
    how = "step 4, ema, euler steps=2, seed"
    assert [
        (row.run, row.how, {k: cell.value for k, cell in row.values.items()})
        for row in rows
    ] == [
        (0, f"{how} 0", {0: "2 ± 0.1"}),
        (0, f"{how} 1", {0: "2.5 ± 0.1"}),
        (1, f"{how} 0", {0: "1 ± 0.1", 1: "9 ± 0.1"}),
    ]


def test_a_protocol_stands_once_under_the_table(tmp_path: Path, dcli: Dcli) -> None:
    """Columns name it by its number."""
    run = left(tmp_path / "runs" / "a")
    measure(run, 1.0, about={"values": {"w2": 1.0, "w2_worst": 2.0}})
    measure(run, 1.0, n=50)
    html, _ = report(dcli, "runs")
    section = html.partition("<h2>Measured</h2>")[2].partition("</section>")[0]
    head, _, rest = section.partition("</thead>")
    columns = re.findall(r'<th class="number">(.*?)</th>', head)
    assert columns == ["w2<sup>1</sup>", "w2_worst<sup>1</sup>", "w2<sup>2</sup>"]
    below = rest.partition("</table>")[2]
    assert re.findall("<li>(.*?)</li>", below) == ["n=100", "n=50"]
    assert section.count("n=100") == 1


def test_numbers_against_other_data_are_in_other_columns(tmp_path: Path) -> None:
    """Where the data lie, and whether labels are read, makes them no others."""
    run = left(tmp_path / "a")
    moons = {"name": "toy2d", "shape": "moons", "root": "here", "labels": False}
    measure(run, 1.0, dataset=moons)
    measure(run, 2.0, dataset={**moons, "shape": "rings"})
    measure(run, 3.0, dataset={**moons, "root": "there", "labels": True}, seed=1)
    columns, rows = measured([Record(run)])
    shapes = [column.protocol.rpartition("shape=")[2] for column in columns]
    assert shapes == ["moons", "rings"]
    assert [sorted(row.values) for row in rows] == [[0, 1], [0]]


def test_ways_to_draw_that_read_alike_tell_what_differs(tmp_path: Path) -> None:
    run = left(tmp_path / "a")
    for value, churn in ((1.0, 0), (2.0, 40)):
        measure(run, value, sampler={"churn": churn, "noise": 1})
    _, rows = measured([Record(run)])
    how = "step 4, ema, euler steps=2, seed 0, sampler.churn="
    assert [row.how for row in rows] == [f"{how}0", f"{how}40"]
    assert [row.values[0].value for row in rows] == ["1 ± 0.1", "2 ± 0.1"]


def test_means_over_seeds_are_rows_beside_single_ones(tmp_path: Path) -> None:
    """The same quantity, so one column; `dcli runs show` tells it in the same words."""
    run = left(tmp_path / "a")
    measure(run, 1.0, seeds=1)
    measure(run, 2.0, seeds=3)
    columns, rows = measured([Record(run)])
    assert [column.protocol for column in columns] == ["n=100"]
    assert [row.how.rpartition(", ")[2] for row in rows] == ["seed 0", "seeds 0 to 2"]


def test_a_run_is_shown_with_what_was_measured(tmp_path: Path, dcli: Dcli) -> None:
    measure(left(tmp_path / "a"), 2.0, about={"values": {"w2": 2.0, "w2_floor": 1.5}})
    told = dcli("runs", "show", "a").out.splitlines()
    at = told.index("  measured           step 4, ema, euler steps=2, seed 0")
    assert told[at + 1].split() == ["w2", "2", "(floor", "1.5)", "n=100"]


def test_a_run_that_measured_itself_has_its_last_number_in_the_table(
    tmp_path: Path,
) -> None:
    run = left(tmp_path / "a")
    for step, own in ((1, True), (2, False), (3, True), (4, True)):
        measure(run, float(step), about={"step": step, "training": own})
    _, rows = measured([Record(run)])
    assert [row.how[:6] for row in rows] == ["step 2", "step 4"]


def test_what_was_measured_while_training_is_drawn_by_protocol(tmp_path: Path) -> None:
    """A curve for each run on its protocol's chart; spreads and floors are none."""
    found = []
    for name, n in (("a", 100), ("b", 100), ("c", 50)):
        folder = left(tmp_path / name)
        about = {"metric": {"name": "w2", "n": n}, "nfe": 5, "protocol": "word"}
        values = {"w2": 1.0, "w2_sd": 0.1, "w2_floor": 0.5, "w2_bound": 9.0}
        told = {"w2": about, "w2_bound": {"metric": {"name": "w2_bound"}}}
        line = json.dumps({"step": 4, **values, "measured": told}) + "\n"
        with (folder / "metrics.jsonl").open("a") as file:
            file.write(line)
        found.append(Record(folder))
    charts = {c.y: [curve.name for curve in c.curves] for c in while_training(found)}
    assert charts == {
        "w2 n=100 nfe=5 word; floor 0.5": ["a", "b"],
        "w2 n=50 nfe=5 word; floor 0.5": ["c"],
        "w2_bound": ["a", "b", "c"],
    }


def test_many_numbers_of_one_metric_are_a_curve(tmp_path: Path) -> None:
    """Left to its picture; what comes with a protocol of its own shows it."""
    run = left(tmp_path / "a")
    place = run / "derived" / "abc-ema" / "metrics.jsonl"
    place.parent.mkdir(parents=True)
    curve = {
        "metric": {"name": "nfe_curve"},
        "values": {f"heun_{i}": 1 for i in range(13)},
    }
    own = {
        "metric": {"name": "fid"},
        "values": {"fid": 2.0, "fid_sd": 0.5, "fid_se": 0.2},
    }
    own["protocol"] = "10k inception"
    place.write_text("".join(json.dumps(line) + "\n" for line in (curve, own)))
    columns, rows = measured([Record(run)])
    assert columns == [("fid", "10k inception")]
    assert [[cell.value for cell in row.values.values()] for row in rows] == [
        ["2 ± 0.5"]
    ]


def places(path: str) -> list[tuple[float, float]]:
    pairs = [pair.split() for pair in re.split("[ML]", path)[1:]]
    return [(float(x), float(y)) for x, y in pairs]


def test_a_curve_lies_where_its_values_are() -> None:
    """Percent from the left and from the top; ticks on the values that they name."""
    curve = Curve(0, "a", [(0, 0.1), (50, 1), (100, 10)], marked=[(50, 1)])
    drawn = chart([curve], "step", "loss")
    assert drawn is not None
    assert places(drawn.curves[0].line) == [(0, 100), (50, 50), (100, 0)]
    assert drawn.curves[0].marks == "M50 50h0"
    assert [(t.at, t.label) for t in drawn.x_ticks] == [
        (20.0 * i, f"{20 * i}") for i in range(6)
    ]
    up = {tick.label: tick.at for tick in drawn.y_ticks}
    assert up["0.1"] == 0 and up["1"] == 50 and up["10"] == 100
    linear = chart([Curve(0, "a", [(0, -1), (1, 1)])], "step", "loss")
    assert linear is not None and "0" in {tick.label for tick in linear.y_ticks}
    for value in (float("nan"), float("inf"), -1e308, 1e307):  # no axis holds them
        assert chart([Curve(0, "a", [(0, value)])], "step", "loss") is None


number = st.floats(-1e30, 1e30) | st.floats(1e-30, 1e30) | st.sampled_from([0.0, 1.0])


@example([(0.0, 2.225e-309)], True)
@example([(0.0, 1e149)], True)
@example([(0.0, 0.0), (0.0, 5.960464477539063e-08)], False)
@given(st.lists(st.tuples(number, number), min_size=1, max_size=30), st.booleans())
def test_every_curve_stays_on_its_plot(points: list[Any], log: bool) -> None:
    drawn = chart([Curve(0, "a", points)], "x", "y", log_x=log, log_y=log)
    assert drawn is not None
    assert all(0 <= v <= 100 for p in places(drawn.curves[0].line) for v in p)
    assert all(-0.1 <= t.at <= 100.1 for t in (*drawn.x_ticks, *drawn.y_ticks))


def test_long_curves_are_averaged() -> None:
    points = [(float(i), float(i % 2)) for i in range(10_000)]
    short = thinned(points, 100)
    assert len(short) == 100 and {y for _, y in short} == {0.5}
    assert short[0][0] == 49.5 and thinned(points[:100], 100) == points[:100]


def test_a_picture_is_what_it_is_and_not_its_name(tmp_path: Path, dcli: Dcli) -> None:
    run = left(tmp_path / "runs" / "a")
    folder = run / "samples" / "euler-2-x"
    folder.mkdir()
    (folder / "grid.png").write_text("<svg onload=alert(1)>")
    (folder / "trajectory.gif").write_bytes(b"\xff\xd8\xff" + bytes(9 << 20))
    _, page = report(dcli, "runs")
    assert [p[:4] for p in page.pictures] == [b"\x89PNG"], "the preview alone"
    assert "trajectory.gif has 9 MB and is left out" in " ".join(page.text)


def test_listing_reads_neither_torch_nor_configs(tmp_path: Path) -> None:
    for i in range(3):
        run = left(tmp_path / "runs" / f"a{i}")
        (run / "config.yaml").unlink()
        os.mkfifo(run / "config.yaml")  # whoever reads it waits for ever
    code, out, err, modules = fresh("runs", "ls", "--json", cwd=tmp_path)
    assert code == 0, err
    assert [row["metrics"]["loss"] for row in json.loads(out)] == [0.25] * 3
    assert not {"torch", "hydra"} & modules
    code, _, err, modules = fresh("report", str(run / "samples"), cwd=tmp_path)
    assert code == 2 and "torch" not in modules


def test_the_tail_of_a_log_is_its_newest_values(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": i, "loss": 1.0 + i, "lr": 0.1}) for i in range(2000)]
    lines.append(json.dumps({"step": 2000, "w2": 3.0, "loss": float("nan")}))
    path.write_text("\n".join(lines) + '\n{"step": 2001, "lo')
    expected = {"step": 2000, "w2": 3.0, "loss": 2000.0, "lr": 0.1}
    assert records.tail(path) == expected
    assert records.tail(tmp_path / "none") == {}
