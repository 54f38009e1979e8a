"""What the README and docs/ say holds: commands, examples, tables, links."""

from __future__ import annotations

import re
import runpy
import shlex
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Dcli
from PIL import Image

from diffusion_cli import cli, config
from diffusion_cli.requests import SampleSettings
from diffusion_cli.settings import RunSettings
from diffusion_cli.usage import VERBS

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
RECIPES = sorted(ROOT.glob("docs/add-*.md"))
PAGES = [README, *sorted(ROOT.glob("docs/*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)
FILE = re.compile(r"`([\w./-]+)`(?:, [\w ]+)?:\n\n```\w+\n(.*?)^```$", re.M | re.S)
SHORT = {
    "train": (
        *("trainer.steps=2", "trainer.batch=4", "trainer.workers=0", "trainer.ema=[1]"),
        *("every.preview=0", "device=cpu"),
    ),
    "sample": ("n=2", "batch=2", "steps=2", "device=cpu"),
    "check": (),
}


def commands(page: Path) -> list[list[str]]:
    """The words of every `dcli` command in the shell blocks of a page."""
    blocks = [body for kind, body in BLOCK.findall(page.read_text()) if kind == "bash"]
    lines = [line.partition(" #")[0] for body in blocks for line in body.splitlines()]
    found = [re.search(r"\bdcli ([^)\"]+)", line) for line in lines]
    return [shlex.split(match[1].replace("$", "")) for match in found if match]


def cells(heading: str) -> Iterator[list[str]]:
    """The rows of the README's table whose first column has this heading."""
    table = README.read_text().partition(f"| {heading} |")[2].partition("\n\n")[0]
    for row in table.splitlines()[2:]:
        yield [cell.strip() for cell in row.strip("|").split("|")]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder outside the repository; what a plug-in registers is forgotten."""
    for registry in config.roles().values():
        monkeypatch.setattr(registry, "_classes", dict(registry._classes))
    monkeypatch.setenv("DCLI_CACHE", str(tmp_path / "cache"))
    return tmp_path


def unpack(page: Path, place: Path) -> None:
    """The files that a page shows."""
    for name, text in FILE.findall(page.read_text()):
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.mark.parametrize("words", commands(README), ids=" ".join)
def test_the_commands_of_the_readme(
    words: list[str], place: Path, dcli: Dcli, monkeypatch: pytest.MonkeyPatch
) -> None:
    unpack(README, place)
    (place / "photos").mkdir()
    Image.new("RGB", (48, 32)).save(place / "photos" / "one.png")
    verb, *rest = [word for word in words if not word.startswith("hydra/")]
    assert verb in VERBS
    if (
        verb in ("sample", "eval", "fit", "tune", "runs", "report", "sweep")
        or "-m" in rest
    ):  # as far as the check
        monkeypatch.setattr(cli, "command", lambda verb: lambda values, words: None)
    outcome = dcli("check" if verb == "train" else verb, *rest)
    assert outcome.code == 0, outcome.err


@pytest.mark.parametrize("page", [README, *RECIPES], ids=lambda page: page.stem)
def test_a_page_of_ones_own_component(page: Path, place: Path, dcli: Dcli) -> None:
    """Its commands as they stand, but short: it trains, and it samples."""
    unpack(page, place)
    for script in place.glob("make_*.py"):
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(place)
            runpy.run_path(str(script))
    own = [w for w in commands(page) if page != README or "conf" in w or "py]" in w[-1]]
    assert {"train", "sample"} <= {verb for verb, *_ in own}
    for verb, *words in own:
        outcome = dcli(verb, *words, *SHORT[verb])
        assert outcome.code == 0, outcome.err


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)", page.read_text())
    local = [target for target in targets if "://" not in target]
    assert [t for t in local if not (page.parent / t).exists()] == []


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def test_the_table_of_processes_is_that_of_the_configs() -> None:
    expected = {}
    for path in (ROOT / "configs" / "process").glob("*.yaml"):
        chosen = [entry for entry in read(path)["defaults"] if isinstance(entry, dict)]
        expected[path.stem] = [f"`{name}`" for each in chosen for name in each.values()]
    rows = {row[0].strip("`"): row[3:] for row in cells("`process=`")}
    assert rows == expected


def test_the_table_of_samplers_is_that_of_the_configs() -> None:
    configs = {path.stem: read(path) for path in ROOT.glob("configs/sampler/*.yaml")}
    expected = {
        name: f"`{node['grid']['name']}`" if "grid" in node else "none"
        for name, node in configs.items()
        if name == node["name"]  # ddim is a setting of another
    }
    assert {row[0].strip("`"): row[3] for row in cells("`sampler=`")} == expected


def test_the_table_of_data_is_that_of_the_configs() -> None:
    named = {name for row in cells("`dataset=`") for name in words_in(row[0])}
    assert named == {path.stem for path in ROOT.glob("configs/dataset/*.yaml")}


@pytest.mark.parametrize("role", ["guidance", "metric"])
def test_every_guidance_and_metric_has_its_row(role: str) -> None:
    named = {name for row in cells(f"`{role}=`") for name in words_in(row[0])}
    there = {path.stem for path in ROOT.glob(f"configs/{role}/*.yaml")}
    assert named == there - {"none"}


def words_in(cell: str) -> list[str]:
    """The words between back-ticks, the `=` of keys removed."""
    ticked = " ".join(re.findall(r"`([^`]+)`", cell))
    return [word.rstrip("=") for word in ticked.split()]


def test_the_keys_of_the_readme_exist() -> None:
    train, sample = (words for words in _tables())
    groups = [f"{g}.{f.name}" for g, cls in config.GROUPS.items() for f in fields(cls)]
    own = [field.name for field in fields(RunSettings)]
    known = {*own, *groups, *config.COMPONENTS, *config.MEASURING, "optimizer.lr"}
    assert set(train) <= known
    assert known - set(train) <= {"trainer.ema_ramp"}, "keys that it does not explain"
    drawn = {field.name for field in fields(SampleSettings)}
    parts = {"sampler", "sampler.KEY", "guidance", "guidance.KEY"}
    assert set(sample) == drawn | parts


def _tables() -> Iterator[list[str]]:
    """The first columns of the two tables of keys."""
    for table in README.read_text().split("| Key |")[1:]:
        rows = table.partition("\n\n")[0].splitlines()[2:]
        yield [word for row in rows for word in words_in(row.split("|")[1])]
