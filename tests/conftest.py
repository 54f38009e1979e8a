from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from diffusion_cli.cli import main


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


Dcli = Callable[..., Outcome]


@pytest.fixture
def dcli(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Dcli:
    """The command line, run in this process from an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> Outcome:
        capfd.readouterr()
        code = main(list(words))
        return Outcome(code, *capfd.readouterr())

    return run
