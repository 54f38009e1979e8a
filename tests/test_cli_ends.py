"""How commands end: sweeps, exit codes, plug-ins."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from conftest import Dcli

from diffusion_cli import cli
from diffusion_cli.errors import NumericsError, Stopped


def fake(monkeypatch: pytest.MonkeyPatch, run: object) -> None:
    monkeypatch.setattr(cli, "command", lambda verb: run)


def test_a_failed_job_does_not_end_a_sweep(
    dcli: Dcli, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds = []

    def run(config: dict[str, int], overrides: list[str]) -> float:
        seeds.append(config["seed"])
        if config["seed"] == 1:
            raise NumericsError("step 3: loss=nan", "trainer.clip=1.0", "NONFINITE")
        return 0.5

    fake(monkeypatch, run)
    outcome = dcli("train", "-m", "seed=0,1,2")
    assert seeds == [0, 1, 2]
    assert outcome.code == 10
    assert (
        outcome.err
        == """\
job 0: seed=0
job 1: seed=1
error[NONFINITE]: step 3: loss=nan
hint: trainer.clip=1.0
job 2: seed=2
error[SWEEP]: 1 of 3 jobs failed
  job 1: exit 7: seed=1
hint: mend them and run the same command again
"""
    )
    assert dcli("train", "-m", "seed=0,2").code == 0


def test_a_signal_ends_a_sweep(dcli: Dcli, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(config: dict[str, int], overrides: list[str]) -> float:
        raise Stopped(15, "SIGTERM: saved step_8")

    fake(monkeypatch, run)
    outcome = dcli("train", "-m", "seed=0,1")
    assert outcome.code == 143
    assert outcome.err == "job 0: seed=0\nSIGTERM: saved step_8\n"


@pytest.mark.parametrize("sweep", [[], ["-m"]])
def test_a_refused_sweep_starts_no_job(
    sweep: list[str], dcli: Dcli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake(monkeypatch, pytest.fail)
    assert dcli("train", *sweep, "sampler=heun,huen").code == 2
    assert not list(tmp_path.iterdir())


class OutOfMemoryError(RuntimeError):
    """torch's, by name."""


@pytest.mark.parametrize(
    ("problem", "code", "words"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError(), 8, "trainer.micro_batch=<smaller>"),
        (OutOfMemoryError("CUDA out of memory"), 8, "error[MEMORY]"),
        (OSError(28, "No space left on device", "x.pt"), 6, "error[DISK-FULL]: x.pt"),
        (BrokenPipeError(), 141, ""),
        (KeyError("oops"), 1, "error[BUG]: KeyError: 'oops'"),
    ],
)
def test_exit_codes(
    problem: BaseException,
    code: int,
    words: str,
    dcli: Dcli,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run(config: object, overrides: list[str]) -> None:
        raise problem

    fake(monkeypatch, run)
    outcome = dcli("train", "seed=0")
    assert (outcome.code, words in outcome.err) == (code, True), outcome.err
    assert ("Traceback" in outcome.err) == (code == 1)


def test_debug_shows_the_traceback(dcli: Dcli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DCLI_DEBUG", "0")
    assert "Traceback" not in dcli("train", "lr=1").err
    assert "Traceback" in dcli("train", "lr=1", "--debug").err


def test_the_name_of_a_run_is_that_of_its_choices(
    dcli: Dcli, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = []
    fake(monkeypatch, lambda config, overrides: names.append(config["name"]))
    dcli("train", "process=edm")
    dcli("train", "exp=digits")
    dcli("train", "exp=digits", "name=mine")
    assert names == ["digits-edm", "digits", "mine"]


PLUGIN = '''
from diffusion_cli.networks import Network, networks
from torch import nn

@networks("outside")
class Outside(Network):
    """One linear map; no reference: it is a test."""

    def __init__(self, state, out, width: int = 4):
        super().__init__()
        self.map = nn.Linear(state.numel, state.numel)

    def forward(self, x, level, label=None, extra=None):
        return self.map(x.flatten(1)).view_as(x)
'''


def test_a_component_of_ones_own(dcli: Dcli, tmp_path: Path) -> None:
    (tmp_path / "outside.py").write_text(PLUGIN)
    (tmp_path / "mine" / "network").mkdir(parents=True)
    (tmp_path / "mine" / "network" / "outside.yaml").write_text(
        "# @package _global_\n"
        "plugins: [./outside.py]\nnetwork: {name: outside, width: 8}\n"
    )
    words = ("--config-dir", "mine", "network=outside", "dataset=toy2d")
    outcome = dcli("check", *words)
    assert outcome.code == 0, outcome.err
    assert "outside (width=8)" in outcome.out
    assert "network: `outside` takes no `wdth`; did you mean `width`?" in (
        dcli("check", *words, "network.wdth=3").err
    )


WRONG = PLUGIN.replace("self.map(x.flatten(1)).view_as(x)", "x.flatten(1)[:, :1]")
BROKEN = PLUGIN.replace("self.map(x.flatten(1))", "self.mop(x.flatten(1))")


@pytest.mark.parametrize(
    ("verb", "text", "code", "told"),
    [
        ("check", WRONG, 2, "network: `outside` returned (1, 1), expected (1, 2)"),
        ("train", WRONG, 2, "network: `outside` returned (8, 1), expected (8, 2)"),
        ("train", BROKEN, 1, f"outside.py:{BROKEN.count(chr(10))})"),
    ],
)
def test_a_network_of_ones_own_returns_what_is_asked_for(
    dcli: Dcli, tmp_path: Path, verb: str, text: str, code: int, told: str
) -> None:
    (tmp_path / "outside.py").write_text(text)
    folder = tmp_path / "mine" / "network"
    folder.mkdir(parents=True)
    (folder / "outside.yaml").write_text(
        "# @package _global_\nplugins: [./outside.py]\nnetwork: {name: outside}\n"
    )
    words = (verb, "--config-dir", "mine", "network=outside", "dataset=toy2d")
    outcome = dcli(*words, "trainer.batch=8", "trainer.steps=2", "trainer.workers=0")
    assert outcome.code == code and told in outcome.err, outcome.err


def test_a_plugin_is_left_alone_in_its_folder(
    dcli: Dcli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    (tmp_path / "own.py").write_text("")
    assert dcli("check", "dataset=toy2d", "plugins=[own.py]").code == 0
    assert not (tmp_path / "__pycache__").exists() and not sys.dont_write_bytecode


def test_a_broken_plugin_is_named(dcli: Dcli, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("1 / 0")
    outcome = dcli("train", "plugins=[broken.py]")
    assert outcome.code == 2
    assert outcome.err.startswith("error: plugins: broken.py: ZeroDivisionError")


def test_options_may_stand_anywhere(dcli: Dcli, tmp_path: Path) -> None:
    got = dcli("train", "dataset=toy2d", "--cfg", "job", "trainer.steps=7")
    assert got.code == 0 and "steps: 7" in got.out


def test_a_broken_yaml_is_named(dcli: Dcli, tmp_path: Path) -> None:
    broken = tmp_path / "mine" / "exp" / "broken.yaml"
    broken.parent.mkdir(parents=True)
    broken.write_text("trainer: {steps: ???}\n")
    got = dcli("train", "exp=broken", "--config-dir", str(tmp_path / "mine"))
    assert got.code == 2 and "broken.yaml, line 1: not yaml" in got.err
