"""Paths that a user types, and the words that a shell and Hydra read back as them."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from conftest import Dcli
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given
from hypothesis import strategies as st

from diffusion_cli.errors import ConfigError
from diffusion_cli.paths import assignment, shown, typed


@example("runs/a b")
@example("runs/$(touch x)`y`")
@example("quo'te\"<b>&\\")
@example("a=b,{c}[d]")
@example("ends\\'")
@given(st.text(st.characters(exclude_categories=("C", "Z")), min_size=1))
def test_a_shell_and_hydra_read_an_assignment_as_its_value(value: str) -> None:
    (word,) = shlex.split(assignment("ckpt", value))
    (found,) = OverridesParser.create().parse_overrides([word])
    assert str(found.value()) == value


def test_the_shell_runs_nothing_of_an_assignment(tmp_path: Path) -> None:
    import subprocess

    for name in ("$(touch x)", "`touch x`", 'a" ; touch x ; "', "$HOME", "a!b"):
        command = f"printf %s {assignment('ckpt', name)}"
        ran = subprocess.run(
            ["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True
        )
        assert ran.stdout == f"ckpt='{name}'" and not list(tmp_path.iterdir())


def test_plain_paths_stay_plain() -> None:
    assert assignment("ckpt", "runs/digits-1a2b3c4d") == "ckpt=runs/digits-1a2b3c4d"
    assert assignment("ckpt", "runs/a b") == "\"ckpt='runs/a b'\""


def test_a_home_is_put_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert typed("~/a", "out") == tmp_path / "a"


WRONG = {
    "~nobody-of-that-name/x": "there is no such user",
    "a" * 300: "File name too long",
    "a\0b": "null",
}


@pytest.mark.parametrize("text", WRONG)
def test_what_can_be_no_path_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=WRONG[text]) as error:
        typed(text, "out")
    assert "\0" not in error.value.render() and len(error.value.render()) < 200


@pytest.mark.parametrize(
    "words",
    [
        "runs show ~nobody-of-that-name",
        "report ~nobody-of-that-name/x",
        "eval 'ckpt=\"~nobody-of-that-name\"' metric=w2",
        f"sample ckpt={'a' * 300} n=2",
        f"runs show {'a' * 300}",
        f"report x out={'a' * 300}.html",
        f"train exp=toy2d out={'a' * 300}",
    ],
)
def test_commands_say_so(dcli: Dcli, words: str) -> None:
    found = dcli(*shlex.split(words))
    assert found.code == 2 and "Traceback" not in found.err, found.err
    assert "no such user" in found.err or "File name too long" in found.err


def test_a_name_of_any_bytes_is_shown() -> None:
    assert shown("caf\u00e9") == "caf\u00e9"
    assert shown("bad\udcff\udcfe") == r"bad\udcff\udcfe"
    assert shown("a\x1b[31mb\nc") == r"a\x1b[31mb\nc"
