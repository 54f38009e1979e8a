"""A checkpoint changed at random: it is read as it stands, or refused with exit 4.

Whoever changes a file can write its hash into the manifest, so the hashes fit here.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from harness import TRAIN
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from diffusion_cli.cli import main

pytestmark = pytest.mark.fault
FUZZ = settings(
    max_examples=40,
    derandomize=True,
    deadline=20_000,  # ms: none hangs
    phases=[Phase.generate],  # the smallest failure takes minutes to find
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
VALUES: list[Any] = [
    *(None, True, -1, 0, 3, 10**9, 2**70, 1e308, -0.5, float("nan"), "", "x"),
    *("../../x", "os.system", "<img onerror=x>", "mlp", "${oc.env:HOME}", "x" * 5000),
    *([], [1], [[]], {}, {"name": "mlp"}, {"_target_": "os.system"}, {"name": []}),
]
GONE = object()
Path_ = tuple[str | int, ...]


def places(tree: Any, here: Path_ = ()) -> list[Path_]:
    """Every place in a JSON document but its root."""
    pairs: list[tuple[str | int, Any]] = []
    if isinstance(tree, dict):
        pairs = list(tree.items())
    elif isinstance(tree, list):
        pairs = list(enumerate(tree))
    found = []
    for key, value in pairs:
        found += [(*here, key), *places(value, (*here, key))]
    return found


def whole_roles(found: list[Path_]) -> list[Path_]:
    """The components of a config, or every place where there are none."""
    return [path for path in found if path[0] == "config" and len(path) == 2] or found


def put(tree: Any, path: Path_, value: Any) -> None:
    """Change a place; a place that is gone already stays so."""
    try:
        for key in path[:-1]:
            tree = tree[key]
        if value is GONE:
            del tree[path[-1]]
        else:
            tree[path[-1]] = value
    except (KeyError, IndexError, TypeError, AttributeError):
        pass


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz") / "run"
    words = [word for word in TRAIN if not word.startswith("out=")]
    assert main([*words, f"out={folder}"]) == 0
    return folder


def changed(whole: Path, folder: Path) -> tuple[Path, Path]:
    """A copy of the run, and its newest checkpoint."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
    shutil.rmtree(folder / "samples", ignore_errors=True)
    return folder, max((folder / "checkpoints").glob("step_*"))


def read(folder: Path) -> Any:
    return json.loads((folder / "manifest.json").read_text())


def write(folder: Path, manifest: Any) -> None:
    (folder / "manifest.json").write_text(json.dumps(manifest))


DRAW = ["n=1", "batch=1", "steps=1", "format=npz", "device=cpu"]


def agree(
    words: list[str], capsys: pytest.CaptureFixture[str], codes: tuple[int, ...]
) -> None:
    """The command ends as it should."""
    capsys.readouterr()
    code, err = main(words), capsys.readouterr().err
    assert code in codes, (code, err)
    assert "Traceback" not in err
    if code:
        assert err.splitlines()[-1].startswith(("hint: ", "error")), err


def edit(data: st.DataObject, tree: Any) -> None:
    """One or two places of a document become something else, or go."""
    for _ in range(data.draw(st.integers(1, 2))):
        found = places(tree) or [("x",)]
        path = data.draw(
            st.one_of(st.sampled_from(found), st.sampled_from(whole_roles(found)))
        )
        put(tree, path, data.draw(st.sampled_from([*VALUES, GONE])))


@given(data=st.data())
@FUZZ
def test_a_manifest_and_its_config(
    data: st.DataObject, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, folder = changed(whole, tmp_path / "run")
    manifest = read(folder)
    edit(data, manifest)
    write(folder, manifest)
    agree(["sample", f"ckpt={run}", *DRAW], capsys, (0, 4))


@given(data=st.data())
@FUZZ
def test_a_state(
    data: st.DataObject, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, folder = changed(whole, tmp_path / "run")
    manifest = read(folder)
    state = json.loads((folder / "state.json").read_text())
    edit(data, state)
    text = json.dumps(state).encode()
    (folder / "state.json").write_bytes(text)
    entry = {"size": len(text), "sha256": hashlib.sha256(text).hexdigest()}
    manifest["files"]["state.json"] = entry
    write(folder, manifest)
    own = [w for w in TRAIN if not w.startswith(("out=", "trainer.steps="))]
    agree([*own, "trainer.steps=13", f"out={run}"], capsys, (0, 4))


@given(data=st.data())
@FUZZ
def test_bytes_of_any_file(
    data: st.DataObject, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, folder = changed(whole, tmp_path / "run")
    name = data.draw(st.sampled_from(sorted(path.name for path in folder.iterdir())))
    text = bytearray((folder / name).read_bytes())
    at = data.draw(st.integers(0, len(text) - 1))
    if data.draw(st.booleans()):
        text[at] ^= data.draw(st.integers(1, 255))
    else:
        del text[at:]
    (folder / name).write_bytes(bytes(text))
    agree(["sample", f"ckpt={run}", *DRAW], capsys, (0, 4))


WRONG: list[tuple[Path_, Any]] = [
    (("data", "shape"), []),
    (("data", "kind"), None),
    (("data", "kind"), "x"),
    (("config", "sampler"), []),
    (("config", "guidance"), {"name": []}),
    (("config", "process"), "x" * 5000),
]


@pytest.mark.parametrize(("path", "value"), WRONG, ids=lambda x: str(x)[:30])
def test_what_was_found_once(
    path: Path_, value: Any, whole: Path, tmp_path: Path, capfd: Any
) -> None:
    _, folder = changed(whole, tmp_path / "run")
    manifest = read(folder)
    put(manifest, path, value)
    write(folder, manifest)
    agree(["sample", f"ckpt={folder}", *DRAW], capfd, (4,))
