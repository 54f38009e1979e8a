"""From Hydra's composition to a checked, plain dictionary, and the identity of a run.

A config is checked in storeys. The keys that are not components first, without torch;
then every component against the signature of its class; then the constructors' own
ranges. Each storey reports all that it finds at once.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import diffusion_cli
from diffusion_cli import plugins
from diffusion_cli.errors import ConfigError, EnvironmentFault
from diffusion_cli.identity import dotted
from diffusion_cli.registry import ROLES, Registry, check_call, near
from diffusion_cli.requests import (
    EvalSettings,
    FitSettings,
    SampleSettings,
    TuneSettings,
)
from diffusion_cli.settings import (
    Evaluation,
    Every,
    Keep,
    RunSettings,
    TrainerSettings,
)

Config = dict[str, Any]
COMPONENTS = (
    "dataset",
    "process",
    "network",
    "parametrisation",
    "objective",
    "coupling",
    "sampler",
    "guidance",
    "optimizer",
)
MEASURING = ("metric", "features")
GROUPS = {
    "trainer": TrainerSettings,
    "every": Every,
    "checkpoint": Keep,
    "evaluation": Evaluation,
}


class Keys(NamedTuple):
    """What the config of a verb holds."""

    top: Any  # the dataclass of its own keys
    groups: Mapping[str, Any] = {}  # dataclasses of nested keys
    roles: tuple[str, ...] = ()  # components
    laid_over: bool = True  # components may be left out, or only some of their keys


VERBS = {
    "train": Keys(RunSettings, GROUPS, (*COMPONENTS, *MEASURING), laid_over=False),
    "sample": Keys(SampleSettings, roles=("sampler", "guidance")),
    "eval": Keys(EvalSettings, roles=("dataset", "sampler", "guidance", *MEASURING)),
    "fit": Keys(FitSettings, roles=("dataset",)),
    "tune": Keys(TuneSettings, roles=("sampler", "guidance")),
}
STACKED = ("guidance", "metric")  # several nodes, in order


def folder() -> Path:
    """Where the configs are: inside an installed package, else beside it."""
    package = Path(diffusion_cli.__file__).parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def demand_versions() -> None:
    """Refuse a Hydra whose composition differs (`EnvironmentFault`)."""
    for package, known in (("hydra-core", "1.3"), ("omegaconf", "2.3")):
        found = metadata.version(package)
        if not found.startswith(f"{known}."):
            message = f"environment: {package} {found} is here, dcli needs {known}"
            hint = f"pip install '{package}=={known}.*'"
            raise EnvironmentFault(message, hint, "VERSION")


class PluginConfigs(SearchPathPlugin):
    """Hydra finds the configs of installed plug-ins after our own."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for path in plugins.folders():
            search_path.append("dcli.plugins", f"file://{path}")


def plain(cfg: DictConfig) -> Config:
    """The composed config as a dictionary, interpolations resolved."""
    try:
        values: Config = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    except OmegaConfBaseException as problem:
        line = str(problem).strip().splitlines()[0]
        raise ConfigError(f"{problem.full_key}: {line}") from problem
    _raise([_needed(key) for key, value in dotted(values).items() if value == "???"])
    return values


def _needed(key: str) -> ConfigError:
    typed = "ckpt=runs/<name>" if key == "ckpt" else f"{key}=..."
    return ConfigError(f"{key}: a value is needed", typed)


def read(path: Path) -> Config:
    """One yaml file, as it stands."""
    return OmegaConf.to_container(OmegaConf.load(path))  # type: ignore[return-value]


def flat(config: DictConfig) -> dict[str, Any]:
    """A composed config as a flat dictionary, interpolations and gaps as they stand."""
    return dotted(OmegaConf.to_container(config))  # type: ignore[arg-type]


def unknown(key: str, known: Iterable[str], verb: str) -> ConfigError:
    """The refusal of a key that does not exist, with the nearest that does."""
    known = sorted(known, key=lambda name: name.partition(".")[0] not in GROUPS)
    last = {name.rpartition(".")[2]: name for name in reversed(known)}
    last |= {name: name for name in known if "." not in name}
    word = key.rpartition(".")[2]
    meant = near(key, known) if "." in key else ""
    if word in last:
        meant = f"; did you mean `{last[word]}`?"
    elif not meant and (guess := near(word, last)):
        meant = f"; did you mean `{last[guess.split('`')[1]]}`?"
    return ConfigError(f"{key}: there is no such key{meant}", f"dcli {verb} --help")


def check(config: Mapping[str, Any], verb: str = "train") -> Config:
    """The config with defaults filled in; all findings of a storey in one error."""
    settings, errors = _settings(config, verb)
    _raise(errors)
    plugins.load(settings["plugins"])
    nodes, errors = _components(config, verb)
    _raise(errors)
    checked: Config = _plain_values(settings | nodes)
    return checked


def _raise(errors: list[ConfigError]) -> None:
    if errors:
        raise errors[0] if len(errors) == 1 else ConfigError("", more=errors)


def _settings(config: Mapping[str, Any], verb: str) -> tuple[Config, list[ConfigError]]:
    """Storey one, free of torch: the keys that belong to no component."""
    top, groups, nodes, _ = VERBS[verb]
    own = {key: value for key, value in config.items() if key not in (*groups, *nodes)}
    known = [field.name for field in fields(top)] + [*nodes]
    known += [f"{name}.{f.name}" for name, cls in groups.items() for f in fields(cls)]
    parts = dotted({key: config[key] for key in nodes if key in config})
    checked, errors = _dataclass(top, own, "", [*known, *parts], verb)
    for name, cls in groups.items():
        values = config.get(name, {})
        if not isinstance(values, Mapping):
            message = f"{name}: expected keys such as {name}.{fields(cls)[0].name}"
            errors.append(ConfigError(f"{message}, got {values!r}"))
            continue
        checked[name], found = _dataclass(cls, values, f"{name}.", known, verb)
        errors += found
    return checked, errors


def _dataclass(
    cls: Any, values: Mapping[str, Any], prefix: str, known: list[str], verb: str
) -> tuple[Config, list[ConfigError]]:
    """Values against a dataclass of settings: names, types, then ranges."""
    names = [field.name for field in fields(cls)]
    strange = [key for key in values if key not in names]
    errors = [unknown(prefix + key, known, verb) for key in strange]
    given = {key: value for key, value in values.items() if key in names}
    bound, found = check_call(cls, given, prefix.rstrip("."), f"dcli {verb}", ())
    for error in found:
        error.message = error.message.removeprefix(".")
    refused = {error.message.partition(":")[0] for error in found}
    own = {key: bound[key] for key in given if prefix + key not in refused}
    while True:  # a refused value gives way to its default, so that all are found
        try:
            return asdict(cls(**own)), errors + found
        except ValueError as problem:
            found.append(ConfigError(f"{prefix}{problem}"))
            del own[str(problem).partition(":")[0]]


def roles() -> dict[str, Registry[Any]]:
    """Every role with all its components imported."""
    for module in pkgutil.iter_modules(diffusion_cli.__path__):
        if module.ispkg and module.name != "commands":
            importlib.import_module(f"diffusion_cli.{module.name}")
    for registry in list(ROLES.values()):
        registry.names()
    return ROLES


def _components(
    config: Mapping[str, Any], verb: str
) -> tuple[Config, list[ConfigError]]:
    """Storeys two and three: every node against its signature, then its own ranges."""
    registries = roles()
    checked: Config = {}
    errors: list[ConfigError] = []
    for role in VERBS[verb].roles:
        node = config.get(role)
        names = registries[role].names() if role in STACKED else []
        if role in STACKED and not _partial(node, names):
            node = stacked(node, empty=None if VERBS[verb].laid_over else [])
        if VERBS[verb].laid_over and (node is None or _partial(node, names)):
            checked[role] = node  # keys to lay over the checkpoint's
            continue
        if role == "features" and node is None:
            checked[role] = None  # each metric's own
            continue
        bound = []
        for each in node if isinstance(node, list) else [node]:
            values, found = registries[role].check(each, role)
            bound.append(values)
            errors += found or _ranges(registries[role], values)
        checked[role] = bound if isinstance(node, list) else bound[0]
    return checked, errors


def _partial(node: Any, names: list[str]) -> bool:
    """Whether a node holds keys for another one: `{churn: 40}`, `{cfg: {scale: 3}}`.

    A stack of nodes, each with one of `names`, does not.
    """
    if not isinstance(node, Mapping) or not node or "name" in node:
        return False
    inner = [value for value in node.values() if isinstance(value, Mapping)]
    whole = [each for each in inner if each.get("name") in names]
    return len(whole) < len(node)


def stacked(node: Any, empty: Any) -> Any:
    """The nodes of a role that takes several: `{cfg: {...}, clip: {...}}` as a list."""
    if node is None:
        return empty
    several = isinstance(node, Mapping) and "name" not in node
    return list(node.values()) if several else node


def _ranges(registry: Registry[Any], node: Config) -> list[ConfigError]:
    """What a constructor says, where it needs no value of the run."""
    from torch import nn, zeros

    from diffusion_cli.core import Spec

    stand_ins = {
        "coupling": None,
        "context": None,
        "data": Spec((3, 1, 1)),  # an image, for processes that ask for one
        "params": [nn.Parameter(zeros(1))],
    }
    if not stand_ins.keys() >= set(registry.given):
        return []
    try:
        registry.build(node, **stand_ins)
    except ConfigError as error:
        return [error]
    return []


def _plain_values(value: Any) -> Any:
    """Tuples as lists, so that a default equals the same value read from a file."""
    if isinstance(value, Mapping):
        return {key: _plain_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_values(item) for item in value]
    return value
