"""The wheel: all configs and data inside, and usable from any directory."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*words: str, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *words],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    words = ("-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder))
    run(*words, str(ROOT), cwd=folder)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the installed wheel and nothing else."""
    folder = tmp_path_factory.mktemp("site")
    words = ("-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder))
    run(*words, str(wheel), cwd=folder)
    return folder


def test_the_wheel_holds_configs_code_and_data(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    configs = {
        f"diffusion_cli/{path.relative_to(ROOT).as_posix()}"
        for path in (ROOT / "configs").rglob("*.yaml")
    }
    package = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "diffusion_cli").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert len(configs) > 30
    assert "diffusion_cli/datasets/digits.npz" in package
    shipped = {name for name in held if not name.split("/")[0].endswith(".dist-info")}
    assert shipped == configs | package


def test_the_installed_wheel_works_from_another_folder(
    site: Path, tmp_path: Path
) -> None:
    path = {"PYTHONPATH": str(site)}
    where = run(
        "-c", "import diffusion_cli as d; print(d.__file__)", cwd=tmp_path, **path
    )
    assert Path(where.strip()).is_relative_to(site)
    shown = run("-m", "diffusion_cli", "check", "exp=digits", cwd=tmp_path, **path)
    assert "runs/digits-" in shown
    script = run(str(site / "bin" / "dcli"), "--version", cwd=tmp_path, **path)
    assert script.startswith("dcli ")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_installed_wheel_trains_and_samples(site: Path, tmp_path: Path) -> None:
    path = {"PYTHONPATH": str(site)}
    words = ("trainer.steps=2", "every.preview=0", "device=cpu")
    trained = run("-m", "diffusion_cli", "train", *words, cwd=tmp_path, **path)
    words = (f"ckpt={trained.strip()}", "n=2", "steps=2")
    drawn = run("-m", "diffusion_cli", "sample", *words, cwd=tmp_path, **path)
    assert (tmp_path / drawn.strip() / "grid.png").is_file()


def test_all_holds_the_other_extras() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    others = {name for name in extras if name not in ("all", "dev")}
    (everything,) = extras["all"]
    named = everything.removeprefix("diffusion-cli[").removesuffix("]").split(",")
    assert sorted(named) == sorted(others)
    assert "diffusion-cli[all]" in extras["dev"]


def test_nothing_needed_is_ignored_by_git() -> None:
    """hatchling obeys .gitignore: a loose `data/` would empty `configs/data`."""
    lines = (ROOT / ".gitignore").read_text().split()
    loose = [line for line in lines if line.endswith("/") and not line.startswith("/")]
    kept = {path.name for path in (ROOT / "configs").rglob("*") if path.is_dir()}
    kept |= {path.name for path in (ROOT / "diffusion_cli").rglob("*") if path.is_dir()}
    assert not {line.rstrip("/") for line in loose} & (kept - {"__pycache__"})
