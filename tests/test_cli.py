"""The command line: help, choices, completion."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Dcli

from diffusion_cli import __version__, cli, config
from diffusion_cli.commands import list as listing
from diffusion_cli.samplers import samplers
from diffusion_cli.usage import VERBS

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
hint: exp=mine sets it; leave it out with '~network.channels'
"""
    )
    assert dcli(*words, "~network.channels").code == 0


def test_check_prints_what_a_run_is(dcli: Dcli, tmp_path: Path) -> None:
    outcome = dcli("check", "exp=ddpm_cifar")
    rows = dict(line.split(maxsplit=1) for line in outcome.out.splitlines())
    assert rows["parameters"] == "35,746,307"
    assert "in float32, less in bf16 or fp16" in rows["memory"]
    assert rows["FLOPs"].endswith("per image, forward")
    assert rows["run"].startswith("folder       runs/ddpm_cifar-")
    assert not list(tmp_path.iterdir())


def test_list_tells_what_goes_with_what(dcli: Dcli) -> None:
    found = json.loads(dcli("list", "samplers", "--json").out)
    heun = next(row for row in found["components"] if row["name"] == "heun")
    assert heun["reference"].startswith("Karras et al. 2022")
    assert "gaussian" in heun["with process"]
    assert "ddim" in [option["name"] for option in found["options"]]


def test_list_shows_one_component_and_its_keys(dcli: Dcli) -> None:
    heun = dcli("list", "sampler", "heun").out
    assert "Karras et al. 2022" in heun and "churn_noise: " in heun
    assert "\n  sampler.churn=" in heun and "euler" not in heun
    ddpm = json.loads(dcli("list", "processes", "ddpm", "--json").out)
    assert ddpm["component"] == "gaussian"
    assert ddpm["keys"]["process.schedule.name"] == "linear"
    own = json.loads(dcli("list", "metric", "w2", "--json").out)["keys"]
    assert "metric.n" in own and not any("context" in key for key in own)
    assert "trainer.steps=" in dcli("list", "exp", "digits").out
    got = dcli("list", "sampler", "huen")
    assert (got.code, got.err) == (
        2,
        "error: sampler: there is no `huen`; did you mean `heun`?\n"
        "hint: dcli list sampler\n",
    )


def test_list_shows_every_name_that_it_lists(dcli: Dcli) -> None:
    whole = json.loads(dcli("list", "--json").out)
    for entry in whole:
        for row in entry["components"] + entry["options"]:
            shown = listing._one(entry, row["name"], [config.folder()])
            assert shown["name"] == row["name"] and shown["keys"]
            assert listing._whole(**shown).startswith(f"{entry['role']}={row['name']}")


def test_list_has_columns_and_short_lines(dcli: Dcli) -> None:
    text = dcli("list").out
    for part in text.split("\n\n"):
        lines = part.splitlines()
        assert max(map(len, lines)) <= 88
        rows = [r for r in lines if re.match(r" {2,4}\S", r) and r[-1] != "="]
        (column,) = {re.match(r" +\S+ +|", row).end() for row in rows}
        assert all(row[column:].strip() for row in rows), "each says what it is"


def test_list_shows_components_of_ones_own(dcli: Dcli) -> None:
    Path("own.py").write_text(
        "from diffusion_cli.samplers.ancestral import Ancestral\n"
        "from diffusion_cli.samplers import samplers\n"
        "@samplers('mine')\n"
        "class Mine(Ancestral):\n"
        '    """Steps of mine.\n\n    No reference: mine.\n    """\n'
    )
    Path("conf/sampler").mkdir(parents=True)
    Path("conf/sampler/slow.yaml").write_text("# Slowly.\nname: mine\nsteps: 7\n")
    own = ("plugins=[own.py]", "--config-dir", "conf")
    try:
        whole = dcli("list", "sampler", *own)
        one = dcli("list", "sampler", "slow", *own)
    finally:
        samplers._classes.pop("mine", None)
    assert "Steps of mine." in whole.out and "slow" in whole.out, whole.err
    assert "sampler.steps=7" in one.out, one.err
    assert "nofile.py: there is no such file" in dcli("list", "plugins=nofile.py").err
    assert (
        "nowhere: there is no such folder" in dcli("list", "--config-dir=nowhere").err
    )


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
        ("dcli list gr", {"grid"}),
        ("dcli completion z", {"zsh"}),
        ("dcli sample ckpt=", {"ckpt=digits-1", "ckpt=toy"}),
        ("dcli sample ckpt=dig", {"ckpt=digits-1"}),
        ("dcli sample ckpt=runs/t", {"ckpt=runs/toy"}),
        ("dcli sample ckpt=x", set()),
        ("dcli sample out=", set()),
        ("dcli sample format=", {"format=png", "format=npz", "format=grid"}),
        ("dcli sample degraded=", {"degraded=true", "degraded=false"}),
        ("dcli sample trajectory=", {"trajectory=gif", "trajectory=strip"}),
        ("dcli sample weights=", {"weights=ema", "weights=raw"}),
        ("dcli train init=t", {"init=toy"}),
        (
            "dcli train trainer.precision=f",
            {f"trainer.precision=fp{n}" for n in (16, 32)},
        ),
        ("dcli train plug", {"plugins="}),
        ("dcli train trainer.em", {"trainer.ema=", "trainer.ema_ramp="}),
        ("dcli train network=unet network.m", {"network.multipliers="}),
        ("dcli train network=unet network.heads=", {"network.heads=1"}),
    ],
)
def test_completion(line: str, words: set[str], dcli: Dcli) -> None:
    for name in ("digits-1", "toy"):
        Path("runs", name, "checkpoints").mkdir(parents=True)
    outcome = dcli("completion", "words", line)
    assert (outcome.code, set(outcome.out.split())) == (0, words)


def test_every_role_that_is_listed_is_completed(dcli: Dcli) -> None:
    listed = {entry["role"] for entry in json.loads(dcli("list", "--json").out)}
    assert {*dcli("completion", "words", "dcli list ").out.split()} == listed | {
        "--json"
    }


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_scripts_are_printed(shell: str, dcli: Dcli) -> None:
    assert "dcli" in dcli("completion", shell).out
    assert dcli("completion", "csh").code == 2
