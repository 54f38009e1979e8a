"""`dcli report` and `dcli runs`: what is shown is what lies there, and nothing acts."""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import Dcli
from pages import left, measure, report
from PIL import Image

from diffusion_cli.cli import main

SMALL = ["dataset=toy2d", "process=flow", "network.width=8", "network.depth=1"]
SMALL += ["trainer.steps=4", "trainer.batch=8", "trainer.workers=0", "device=cpu"]
SMALL += ["every.log=1", "every.preview=4", "sampler.steps=2"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `runs` holds a real run, sampled with a film."""
    place = tmp_path_factory.mktemp("place")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert main(["train", *SMALL]) == 0
        words = ["n=4", "batch=4", "trajectory=gif", "device=cpu"]
        assert main(["sample", "ckpt=toy2d", *words]) == 0
    return place


def test_a_report_of_a_real_run(
    trained: Path, dcli: Dcli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its pictures are the files, and its command finds the run again."""
    monkeypatch.chdir(trained)
    html, page = report(dcli, "toy2d")
    run = next(Path("runs").glob("toy2d-flow-*"))
    names = ("*/grid.png", "*/trajectory.gif", "*04.png", "*04-raw.png")
    expected = [next((run / "samples").glob(name)) for name in names]
    assert page.pictures == [path.read_bytes() for path in expected]
    text = " ".join(page.text)
    assert "complete at step 4 of 4" in text and "2 calls each, seed 0" in text
    shown = next(t for t in page.text if t.startswith("dcli train"))
    assert shlex.split(shown) == ["dcli", "train", *SMALL]
    got = dcli(*shlex.split(shown)[1:])
    assert got.code == 0 and Path(got.out.strip()) == run
    assert "already complete at step 4" in got.err
    assert html.count("<path d=") >= 3, "loss, loss by time, gradient norm"


def test_a_report_asks_for_nothing(trained: Path, dcli: Dcli) -> None:
    """No script, no address outside of the page, and a policy that forbids both."""
    html, page = report(dcli, str(trained / "runs"))
    assert "script" not in page.tags and "link" not in page.tags
    targets = [v for k, v in page.attributes if k in ("src", "href")]
    assert targets and all(v.startswith(("#", "data:image/")) for v in targets)
    assert "default-src 'none'; img-src data:" in html
    assert not re.search(r"https?:|@import|url\(", html)


def test_hostile_text_stays_text(tmp_path: Path, dcli: Dcli) -> None:
    """Fault S7: from names, configs, arguments, errors, versions and measurements."""
    bad = "<img src=x onerror=alert(1)>\"'><b>&amp;{{ 977*977 }}"
    run = left(tmp_path / "runs" / f"a{bad}", "failed", why=bad)
    other = left(tmp_path / "runs" / "b")
    config = {"name": bad, bad: {"name": bad}, "dataset": {"name": bad, bad: bad}}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    (run / "overrides.yaml").write_text(yaml.safe_dump([bad]))
    environment = {"versions": {"torch": bad}, "machine": {"name": bad}}
    (run / "environment.json").write_text(json.dumps(environment))
    measure(run, 1.0, **{bad: bad})
    for line in ({"step": 5, "loss": 1.0, bad: 3.0}, {"step": 6, bad: 2.0}):
        with (run / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
    (run / "samples" / bad).mkdir()
    Image.new("L", (2, 2)).save(run / "samples" / bad / "grid.png")
    _, page = report(dcli, str(run), str(other))
    assert "b" not in page.tags and page.tags.count("img") == 3
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    text = "".join(page.text)
    assert text.count(bad) >= 10 and "954529" not in text
    values = [value for _, value in page.attributes if bad in (value or "")]
    assert values, "attributes hold it whole"


FILES = ("config.yaml", "overrides.yaml", "environment.json", "metrics.jsonl")


@pytest.mark.parametrize("name", [*FILES, "status.json", "samples/step_00000004.png"])
@pytest.mark.parametrize(
    "how", ["absent", "empty", "half", "foreign", "folder", "bytes"]
)
def test_missing_and_torn_files(
    name: str, how: str, tmp_path: Path, dcli: Dcli
) -> None:
    """The rest is shown, by every command."""
    run, other = left(tmp_path / "runs" / "a"), left(tmp_path / "runs" / "b")
    data = (run / name).read_bytes()
    (run / name).unlink()
    kinds = {"empty": b"", "half": data[: len(data) // 2], "foreign": b"[1, {}, NaN]\n"}
    kinds |= {"bytes": bytes(range(256)), "circle": b"&a {name: x, b: *a, c: [*a]}"}
    if how == "folder":
        (run / name).mkdir()
    elif how != "absent":
        (run / name).write_bytes(kinds[how])
    _, page = report(dcli, str(run), str(other))
    text = " ".join(page.text)
    assert "a" in page.text and "b" in page.text
    assert ("complete at step 4" in text) and text.count("loss") >= 1
    for words in (["ls"], ["show", "a"], ["diff", "a", "b"]):
        for more in ([], ["--json"]):
            got = dcli("runs", *words, *more)
            assert got.code == 0, got.err
            json.loads(got.out) if more else None


def test_an_unfinished_run_is_shown_as_it_stands(tmp_path: Path, dcli: Dcli) -> None:
    here, own = socket.gethostname(), os.getpid()
    done = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"],
                          capture_output=True, text=True, check=True)  # fmt: skip
    left(tmp_path / "runs" / "alive", "running", 2, pid=own, host=here)
    left(tmp_path / "runs" / "dead", "running", 2, pid=int(done.stdout), host=here)
    left(tmp_path / "runs" / "far", "running", 2, pid=int(done.stdout))
    left(tmp_path / "runs" / "bad", "failed", 2, why="NONFINITE: the loss")
    bare = tmp_path / "runs" / "new"
    bare.mkdir()
    (bare / "overrides.yaml").write_text("[]")
    got = dcli("runs", "ls", "sort=name")
    rows = [line.split() for line in got.out.splitlines()[1:]]
    found = {row[0].removeprefix("runs/"): row[1] for row in rows}
    expected = {"alive": "running", "dead": "killed", "far": "running"}
    assert found == expected | {"bad": "failed", "new": "unknown"}
    assert rows[0][2] == "4", "the log is ahead of what was saved"
    typed = {row[0].removeprefix("runs/"): row[-1] for row in rows}
    assert typed["dead"] == "dataset=toy2d", "which `new` has not"
    _, page = report(dcli, "runs")
    assert "NONFINITE: the loss" in page.text
