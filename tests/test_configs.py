from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from choices import fitting_data
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from diffusion_cli import assemble, config, identity
from diffusion_cli.errors import ConfigError
from diffusion_cli.requests import EvalSettings, SampleSettings
from diffusion_cli.settings import RunSettings

ROOT = config.folder()
GROUPS = sorted(
    (path.parent.name, path.stem)
    for path in ROOT.glob("*/*.yaml")
    if path.parent.name in (*config.COMPONENTS, "exp")
)
METRICS = sorted(path.stem for path in ROOT.glob("metric/*.yaml"))
FEATURES = sorted(path.stem for path in ROOT.glob("features/*.yaml"))


def composed(verb: str, *overrides: str) -> dict[str, Any]:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT), version_base="1.3"):
        return config.plain(compose(verb, list(overrides)))


def overrides(group: str, name: str) -> list[str]:
    """The choice of one yaml, and what else it needs to be a whole config."""
    chosen = [f"+exp={name}"] if group == "exp" else [f"{group}={name}"]
    if group == "dataset" and name in ("image_folder", "pairs"):
        chosen.append("dataset.path=images")
    if group == "guidance" and name == "cfg":
        chosen.append("objective.drop=0.1")
    if group == "guidance":
        chosen += {
            "auto": ["guidance.run=x"],
            "classifier": ["guidance.run=x"],
            "similarity": ["guidance.energy.path=x"],
            "inpaint": ["guidance.path=x"],
            "inverse": ["guidance.path=x"],
            "infill": ["guidance.prompt=x"],
        }.get(name, [])
    if (group, name) == ("network", "encoder"):
        chosen.append("parametrisation=classes")
    if (group, name) == ("parametrisation", "classes"):
        chosen.append("objective=classify")
    return chosen


def test_there_are_configs() -> None:
    groups = {group for group, _ in GROUPS}
    assert groups == {*config.COMPONENTS, "exp"}


@pytest.mark.parametrize(("group", "name"), GROUPS)
def test_every_yaml_composes_and_checks(group: str, name: str) -> None:
    checked = config.check(composed("train", *overrides(group, name)))
    assert config.check(checked) == checked


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_composes_and_checks(name: str) -> None:
    checked = config.check(composed("eval", "ckpt=x", f"metric={name}"), "eval")
    assert checked["metric"]["name"]


@pytest.mark.parametrize("name", FEATURES)
def test_every_features_composes_and_checks(name: str) -> None:
    more = ["features.path=x"] if name == "torchvision" else []
    words = ("ckpt=x", "metric=fid", f"features={name}", *more)
    checked = config.check(composed("eval", *words), "eval")
    assert checked["features"]["name"]


@pytest.mark.parametrize("name", [name for group, name in GROUPS if group == "exp"])
def test_every_recipe_assembles_without_data(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    checked = config.check(composed("train", f"+exp={name}"))
    parts = assemble.parts(checked, assemble.spec_of(checked), device="meta")
    assert all(weight.is_meta for weight in parts.model.network.parameters())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [name for group, name in GROUPS if group == "process"])
def test_every_process_selects_parts_that_fit(name: str) -> None:
    data = f"dataset={fitting_data(name)}"
    checked = config.check(composed("train", f"process={name}", data))
    assemble.parts(checked, assemble.spec_of(checked), device="meta")


@pytest.mark.parametrize("name", [name for group, name in GROUPS if group == "exp"])
def test_a_recipe_states_its_source_command_and_hardware(name: str) -> None:
    header = "".join(
        line
        for line in (ROOT / "exp" / f"{name}.yaml").read_text().splitlines()
        if line.startswith("#")
    )
    assert "Command:" in header and "Hardware:" in header


def test_train_yaml_says_the_defaults_of_the_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("DCLI_CACHE", raising=False)
    values = composed("train")
    roles = (*config.COMPONENTS, *config.MEASURING)
    assert set(values) == {*roles, *config.GROUPS, *asdict(RunSettings())}
    for key, value in asdict(RunSettings()).items():
        assert values[key] == value, key
    for group, cls in config.GROUPS.items():
        expected = asdict(cls())
        assert values[group] == config._plain_values(expected), group


def test_sample_yaml_says_the_defaults_of_the_settings() -> None:
    values = composed("sample", "ckpt=runs/x")
    expected = asdict(SampleSettings("runs/x"))
    assert values == expected | {"sampler": None, "guidance": None}


def test_eval_yaml_says_the_defaults_of_the_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("DCLI_CACHE", raising=False)
    values = composed("eval", "ckpt=runs/x")
    roles = ("dataset", "sampler", "guidance", "metric", "features")
    own = dict.fromkeys(roles)
    assert values == asdict(EvalSettings("runs/x")) | own


def test_a_chosen_sampler_replaces_the_runs_own() -> None:
    checked = config.check(composed("sample", "ckpt=x", "sampler=heun"), "sample")
    assert checked["sampler"]["name"] == "heun"
    assert checked["guidance"] is None
    checked = config.check(composed("sample", "ckpt=x", "++sampler.churn=40"), "sample")
    assert checked["sampler"] == {"churn": 40}


@pytest.mark.parametrize("first", ["process=edm", "sampler=ddim"])
def test_an_explicit_choice_wins_in_any_order(first: str) -> None:
    words = ["process=edm", "sampler=ddim", "+exp=digits"]
    words.insert(0, words.pop(words.index(first)))
    values = composed("train", *words)
    assert values["sampler"]["name"] == "ancestral"
    assert values["process"]["schedule"]["name"] == "karras"


def identity_of(change: Callable[[dict[str, Any]], Any]) -> str:
    checked = config.check(composed("train"))
    change(checked)
    return identity.identity(checked)


EXECUTION = {
    "out": "x",
    "name": "x",
    "device": "cpu",
    "fresh": True,
    "plugins": ["x.py"],
    "every.log": 1,
    "every.save": 1,
    "trainer.micro_batch": 1,
    "trainer.recompute": "blocks",
    "trainer.compile": True,
    "trainer.time_limit": "1h",
    "trainer.workers": 0,
    "checkpoint.keep": 0,
}
IDENTITY = {
    "seed": 1,
    "trainer.steps": 1,
    "trainer.batch": 1,
    "optimizer.lr": 1.0,
    "network.channels": 8,
    "process.schedule.levels": 10,
    "init": "runs/x",
}


@pytest.mark.parametrize("key", [*EXECUTION, *IDENTITY])
def test_identity_is_what_a_run_is_not_how_it_is_executed(key: str) -> None:
    *groups, last = key.split(".")

    def change(values: dict[str, Any]) -> None:
        for group in groups:
            values = values[group]
        assert values[last] != (EXECUTION | IDENTITY)[key]
        values[last] = (EXECUTION | IDENTITY)[key]

    same = identity_of(change) == identity_of(lambda values: None)
    assert same == (key in EXECUTION)


def test_identity_is_eight_digits_and_blind_to_the_order_of_keys() -> None:
    plain = identity_of(lambda values: None)
    assert len(plain) == 8 and int(plain, 16) >= 0

    def shuffle(values: dict[str, Any]) -> None:
        items = list(values.items())
        values.clear()
        values.update(reversed(items))

    assert identity_of(shuffle) == plain


def test_a_default_written_out_is_the_same_run() -> None:
    """Every default filled in by a signature equals the same value in a file."""
    explicit = composed("train", "++network.dropout=0", "++optimizer.betas=[0.9,0.999]")
    assert identity.identity(config.check(explicit)) == identity_of(lambda values: None)


def test_the_run_folder() -> None:
    checked = config.check(composed("train"))
    name = f"digits-gaussian-{identity.identity(checked)}"
    assert identity.run_folder(checked) == Path("runs") / name
    assert identity.run_folder(checked | {"name": "a"}).name.startswith("a-")
    assert identity.run_folder(checked | {"out": "/tmp/x"}) == Path("/tmp/x")
    choices = {"dataset": "digits", "process": "edm"}
    assert identity.title(choices) == "digits-edm"
    assert identity.title({"dataset": "digits"}) == "digits"
    assert identity.title(choices | {"exp": "mine/best"}) == "mine-best"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"every": 3}, "every: expected keys such as every.log, got 3"),
        ({"network": None}, "network: expected a component such as {name: ...}"),
        ({"guidance": 3}, "guidance: expected a component such as {name: ...}"),
        ({"plugins": "x.py"}, "plugins: expected a list such as [1, 2], got 'x.py'"),
        ({"seed": -1}, "seed: must be in 0 .. 2^63 - 1, got -1"),
        ({"seed": None}, "seed: expected an integer, got None"),
        ({"exp": "digits"}, "exp: there is no such key"),
    ],
)
def test_check_refuses(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.check(composed("train") | change)
    assert message in caught.value.render()


def test_several_guidances_are_a_list() -> None:
    nodes = [{"name": "cfg"}, {"name": "cfg", "scale": 3}]
    checked = config.check(composed("train") | {"guidance": nodes})
    assert [node["scale"] for node in checked["guidance"]] == [2.0, 3.0]


def test_every_component_has_a_config() -> None:
    """What a registry holds can be chosen by name on the command line."""
    for role in config.COMPONENTS:
        nodes = [config.read(path) for path in (ROOT / role).glob("*.yaml")]
        named = {(node.get(role) or node).get("name") for node in nodes}
        registry = config.roles()[role]
        own = {n for n in registry.names() if _ours(registry[n])}
        assert own and own <= named, role


def _ours(component: type) -> bool:
    """Whether a component is the package's, not one that another test plugged in."""
    return component.__module__.startswith("diffusion_cli.")
