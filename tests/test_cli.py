from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Dcli

from diffusion_cli import __version__, cli
from diffusion_cli.errors import NumericsError, Stopped
from diffusion_cli.usage import VERBS

TAKES = "dcli list sampler"
SMALL = ("dataset=toy2d", "network=mlp", "network.width=8", "network.depth=1")


def fresh(*words: str, cwd: Path) -> tuple[int, str, str, set[str]]:
    """A command in its own interpreter, and the modules it imported."""
    script = "import sys; from diffusion_cli.cli import main; code = main()\n"
    script += "print('|'.join(sys.modules), file=sys.stderr); sys.exit(code)"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", script, *words],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment,
    )
    *lines, modules = done.stderr.splitlines()
    return done.returncode, done.stdout, "\n".join(lines), set(modules.split("|"))


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["train", "--help"], 0),
        (["sample", "-h"], 0),
        (["trian"], 2),
        (["completion", "bash"], 0),
    ],
)
def test_help_imports_neither_hydra_nor_torch(
    words: list[str], code: int, tmp_path: Path
) -> None:
    """Fault G12."""
    returned, _, _, modules = fresh(*words, cwd=tmp_path)
    assert returned == code
    assert "torch" not in modules
    assert "hydra" not in modules or words[0] == "completion"


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["train", "--cfg", "job"], 0),
        (["sample", "ckpt=x", "--cfg", "job"], 0),
        (["completion", "words", "dcli train proc"], 0),
        (["list", "exp"], 0),
        (["train", "trainer.stpes=3"], 2),
        (["train", "trainer.steps=abc"], 2),
        (["train", "+typo=1"], 2),
        (["train", "sampler=huen"], 2),
        (["train", "exp=digts"], 2),
        (["train", "init=a=b"], 2),
        (["train", "--stepz"], 2),
        (["sample"], 2),
        (["sample", "ckpt=x", "n=0"], 2),
    ],
)
def test_what_needs_no_component_does_not_import_torch(
    words: list[str], code: int, tmp_path: Path
) -> None:
    """Fault G12."""
    returned, _, err, modules = fresh(*words, cwd=tmp_path)
    assert returned == code, err
    assert "torch" not in modules
    assert not list(tmp_path.iterdir())


def test_the_module_is_the_command(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "diffusion_cli", "--version"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
    )
    assert (done.returncode, done.stdout) == (0, f"dcli {__version__}\n")


REFUSALS = {
    "trian": """\
error: there is no verb `trian`; did you mean `train`?
hint: dcli --help
""",
    "train trainer.stpes=3": """\
error: trainer.stpes: there is no such key; did you mean `trainer.steps`?
hint: dcli train --help
""",
    "train +trainer.stpes=3": """\
error: trainer.stpes: there is no such key; did you mean `trainer.steps`?
hint: dcli train --help
""",
    "train +typo=1": """\
error: typo: there is no such key
hint: dcli train --help
""",
    "train lr=1": """\
error: lr: there is no such key; did you mean `optimizer.lr`?
hint: dcli train --help
""",
    "train steps=10": """\
error: steps: there is no such key; did you mean `trainer.steps`?
hint: dcli train --help
""",
    "train smapler=heun": """\
error: smapler: there is no such key; did you mean `sampler`?
hint: dcli train --help
""",
    "train sampler=huen": f"""\
error: sampler: there is no `huen`; did you mean `heun`?
hint: {TAKES}
""",
    "train optimizer.lr=-1 optimizer.eps=-1": """\
error: optimizer.lr: must be > 0, got -1.0
""",
    "train optimizer.lr=inf sampler.steps=1e30": """\
error: sampler.steps: expected an integer, got 1e+30
error: optimizer.lr: expected a number, got inf
""",
    "sample ckpt=x guidance=[{name:cfg}]": """\
error: a choice such as guidance= takes a name, or a list of names
hint: dcli sample --help
""",
    "train seed=0,1": """\
error: seed: several values, `0,1`
hint: -m for a sweep, or seed=[0,1] for a list
""",
    "train +seed=1": """\
error: seed: is there already
hint: seed=... without `+`
""",
    "train digits": """\
error: `digits`: expected key=value
hint: exp=digits for a recipe, or dcli train --help
""",
    "train init=runs/lr=1": """\
error: init: the value `runs/lr=1` cannot be read
hint: quote it twice: "init='runs/lr=1'"
""",
    "train --stepz": """\
error: unrecognized arguments: --stepz
hint: dcli --help
""",
    "train trainer.steps=": """\
error: trainer.steps: expected an integer, got ''
""",
    "train trainer.steps=abc trainer.precision=bf17 every.log=0 trainer.batch=0": """\
error: trainer.steps: expected an integer, got 'abc'
error: trainer.precision: expected one of `auto`, `fp32`, `bf16`, `fp16`, got 'bf17'
error: trainer.batch: must be >= 1, got 0
error: every.log: must be >= 1, got 0
""",
    "train seed=${nope}": """\
error: seed: Interpolation key 'nope' not found
""",
    "train name=../x": """\
error: name: must be letters, digits and `._-`, got '../x'
""",
    "train plugins=[nofile.py]": """\
error: plugins: nofile.py: there is no such file
""",
    "train network.chanels=3 sampler.steps=0 optimizer.lr=abc": """\
error: network: `unet` takes no `chanels`; did you mean `channels`?
hint: `unet` takes `channels`, `multipliers`, `blocks`, `attention`, `heads`, `dropout`
error: sampler.steps: must be >= 1, got 0
error: optimizer.lr: expected a number, got 'abc'
""",
    "train process.schedule.name=linaer": """\
error: process.schedule: there is no `linaer`; did you mean `linear`?
hint: dcli list schedule
""",
    "sample": """\
error: ckpt: a value is needed
hint: ckpt=runs/<name>
""",
    "sample ckpt=x process=ddpm": """\
error: process: `dcli sample` takes no `process`
hint: dcli sample --help
""",
    "sample ckpt=x sampler=heun sampler.chrun=40": """\
error: sampler: `heun` takes no `chrun`; did you mean `churn`?
hint: `heun` takes `grid`, `steps`, `churn`, `churn_min`, `churn_max`, `churn_noise`
""",
    "list smapler": """\
error: list: there is no role `smapler`; did you mean `sampler`?
hint: dcli list
""",
}


@pytest.mark.parametrize("line", REFUSALS)
def test_a_refusal_teaches_and_leaves_nothing(
    line: str, dcli: Dcli, tmp_path: Path
) -> None:
    outcome = dcli(*line.split())
    assert outcome.err == REFUSALS[line]
    assert (outcome.code, outcome.out) == (2, "")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_and_a_command(verb: str, dcli: Dcli) -> None:
    assert dcli(verb, "--help") == (0, VERBS[verb].text, "")
    assert callable(cli.command(verb))


def test_exp_may_be_given_with_or_without_plus(dcli: Dcli) -> None:
    with_plus = dcli("train", "+exp=digits", "--cfg", "job")
    assert with_plus.code == 0
    assert dcli("train", "exp=digits", "--cfg", "job") == with_plus


def test_an_explicit_choice_wins_over_a_recipe(dcli: Dcli) -> None:
    words = ("exp=digits", "sampler=ddim", "--cfg", "job", "--package", "sampler")
    assert "name: ancestral" in dcli("train", *words).out


def test_an_argument_that_no_yaml_lists_needs_no_plus(dcli: Dcli) -> None:
    outcome = dcli("check", "network.dropout=0.25", "process.schedule.first=2e-4")
    assert outcome.code == 0, outcome.err
    assert "dropout=0.25" in outcome.out and "first=0.0002" in outcome.out


def test_an_argument_that_leaks_from_a_recipe_names_it(
    dcli: Dcli, tmp_path: Path
) -> None:
    (tmp_path / "exp").mkdir()
    (tmp_path / "exp" / "mine.yaml").write_text(
        "# @package _global_\nnetwork: {channels: 8}\n"
    )
    words = ("check", "--config-dir", ".", "exp=mine", "network=dit_tiny")
    assert (
        dcli(*words).err
        == """\
error: network: `dit` takes no `channels`
hint: exp=mine sets it; leave it out with ~network.channels
"""
    )
    assert dcli(*words, "~network.channels").code == 0


def test_check_prints_what_a_run_is(dcli: Dcli, tmp_path: Path) -> None:
    outcome = dcli("check", "exp=ddpm_cifar")
    rows = dict(line.split(maxsplit=1) for line in outcome.out.splitlines())
    assert rows["parameters"] == "35,746,307"
    assert rows["FLOPs"].endswith("per image, forward")
    assert rows["run"].startswith("folder       runs/ddpm_cifar-")
    assert not list(tmp_path.iterdir())


def test_list_tells_what_goes_with_what(dcli: Dcli) -> None:
    found = json.loads(dcli("list", "samplers", "--json").out)
    heun = next(row for row in found["components"] if row["name"] == "heun")
    assert heun["reference"].startswith("Karras et al. 2022")
    assert "gaussian" in heun["with process"]
    assert "ddim" in [option["name"] for option in found["options"]]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("dcli tr", {"train"}),
        ("dcli train process=f", {"process=flow"}),
        ("dcli train trainer.st", {"trainer.steps="}),
        ("dcli train exp=ddpm", {"exp=ddpm_cifar"}),
        ("dcli train -m process=ddpm,edm samp", {"sampler=", "sampler."}),
        ("dcli sample sampler=h", {"sampler=heun"}),
        ("dcli sample proc", set()),
        ("dcli list sam", {"sampler"}),
        ("dcli completion z", {"zsh"}),
    ],
)
def test_completion(line: str, words: set[str], dcli: Dcli) -> None:
    outcome = dcli("completion", "words", line)
    assert (outcome.code, set(outcome.out.split())) == (0, words)


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_scripts_are_printed(shell: str, dcli: Dcli) -> None:
    assert "dcli" in dcli("completion", shell).out
    assert dcli("completion", "csh").code == 2


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
    outcome = dcli("train")
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
