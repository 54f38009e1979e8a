"""`dcli list`: every component with one line, its reference and what it goes with."""

from __future__ import annotations

import inspect
import json
import re
from argparse import ArgumentError, ArgumentParser
from collections.abc import Iterator, Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

from diffusion_cli import config, plugins
from diffusion_cli.errors import ConfigError
from diffusion_cli.identity import dotted
from diffusion_cli.registry import ROLES, Registry, near

Row = dict[str, Any]
_WIDTH = 88


def run(settings: dict[str, Any], overrides: list[str]) -> None:
    """Print all roles, one, or one name of it; `--json` for scripts."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--config-dir", type=Path, default=config.folder())
    try:
        asked, typed = parser.parse_known_args(overrides)
    except ArgumentError as problem:
        raise ConfigError(f"list: {problem}", "dcli list --help") from problem
    if not asked.config_dir.is_dir():
        message = f"list: {asked.config_dir}: there is no such folder"
        raise ConfigError(message, "--config-dir FOLDER")
    folders = [config.folder(), *plugins.folders(), asked.config_dir]
    own = [word for word in typed if word.startswith("plugins=")]
    words = [word for word in typed if word not in own]
    if len(words) > 2:
        message = f"list: one role, and one name of it, got {' '.join(words)}"
        raise ConfigError(message, f"dcli list {words[0]} {words[1]}")
    for word in own:
        plugins.load(re.findall(r"[^\[\], ]+", word.removeprefix("plugins=")))
    names = [*config.COMPONENTS, "exp"]
    if words[:1] not in (["exp"], ["exps"]):  # recipes are files: no need of torch
        names += [role for role in config.roles() if role not in names]
    if words:
        names = [_role(words[0], names)]
    found: list[Row] = []
    for name in names:
        known = list(components(name))
        named = options(name, folders, known)
        found.append({"role": name, "components": known, "options": named})
    if words[1:]:
        found = [_one(found[0], words[1], folders)]
    if asked.json:
        print(json.dumps(found[0] if words else found, indent=2, ensure_ascii=False))
    elif words[1:]:
        print(_whole(**found[0]))
    else:
        print("\n\n".join(_text(**entry) for entry in found))


def _one(entry: Row, word: str, folders: Sequence[Path]) -> Row:
    """What one name of a role stands for, with every key and what it is."""
    role, registry = entry["role"], ROLES.get(entry["role"])
    files = {path.stem: path for path in _files(role, folders)}
    known = {row["name"]: row for row in entry["components"]}
    if word not in {*files, *known}:
        message = f"{role}: there is no `{word}`{near(word, {*files, *known})}"
        raise ConfigError(message, f"dcli list {role}")
    read: Row = config.read(files[word]) if word in files else {"name": word}
    node = read if "name" in read else read.get(role) or {}
    if registry is None or "name" not in node:  # a recipe
        return {"role": role, "name": word, "keys": dotted(read)}
    cls = registry[node["name"]]
    signature = inspect.signature(cls).parameters.values()
    keys = {
        parameter.name: "???"
        if parameter.default is parameter.empty
        else parameter.default
        for parameter in signature
        if parameter.name not in registry.given
        and parameter.kind is not parameter.VAR_KEYWORD
    }
    row = known[node["name"]]
    return {
        "role": role,
        "name": word,
        "component": node["name"],
        "about": inspect.getdoc(cls),
        **{key: value for key, value in row.items() if key.startswith("with ")},
        "keys": dotted({role: {"name": node["name"], **keys, **node}}),
    }


def _role(word: str, names: list[str]) -> str:
    """The role that a singular or a plural names."""
    spelt = {name + ending: name for ending in ("es", "s", "") for name in names}
    if word not in spelt:
        message = f"list: there is no role `{word}`{near(word, spelt)}"
        raise ConfigError(message, "dcli list")
    return spelt[word]


def components(role: str) -> Iterator[Row]:
    """What a role's classes say of themselves."""
    registry = ROLES.get(role)
    for name in registry.names() if registry else ():
        assert registry
        text = inspect.getdoc(registry[name]) or ""
        reference = re.search(r"^Reference: (.+?)(?:\n\n|\Z)", text, re.M | re.S)
        yield {
            "name": name,
            "summary": text.partition("\n\n")[0].replace("\n", " "),
            "reference": " ".join(reference[1].split()) if reference else None,
            **_partners(registry, name),
        }


def _partners(registry: Registry[Any], name: str) -> Row:
    """Which processes a component works on; for a process, which components do."""
    processes = ROLES["process"]
    if registry is processes:
        own = processes[name]
        return {
            f"with {role}": [each for each in other.names() if _fits(other, each, own)]
            for role, other in ROLES.items()
            if role in ("parametrisation", "sampler", "guidance")
        }
    if _need(registry, name) is None:
        return {}
    classes = {each: processes[each] for each in processes.names()}
    return {"with process": [e for e, c in classes.items() if _fits(registry, name, c)]}


def _need(registry: Registry[Any], name: str) -> type | None:
    """The process class that a component demands."""
    need = getattr(registry[name], "needs", None)
    if not isinstance(need, property):
        return need
    folders = (config.folder(), *plugins.folders())
    for path in _files(registry.role, folders):  # built, it knows, as its file says
        node = config.read(path)
        if node.get("name") == name:
            built: type = registry.build(node, **dict.fromkeys(registry.given)).needs
            return built
    return None


def _fits(registry: Registry[Any], name: str, process: type) -> bool:
    need = _need(registry, name)
    return need is None or issubclass(process, need)


def options(group: str, folders: Sequence[Path], components: list[Row]) -> list[Row]:
    """The names that `group=` takes: the first line of a file, or of what it names."""
    about = {row["name"]: row["summary"] for row in components}
    return [
        {
            "name": path.stem,
            "summary": _header(path) or about.get(config.read(path).get("name"), ""),
        }
        for path in _files(group, folders)
    ]


def _files(group: str, folders: Sequence[Path]) -> list[Path]:
    found = {each / group: None for each in folders}
    return [path for each in found for path in sorted(each.glob("*.yaml"))]


def _header(path: Path) -> str:
    """The first sentence of a file's comment, as far as it ends a line."""
    lines = path.read_text(encoding="utf-8").splitlines()
    about = [line[1:].strip() for line in lines if line.startswith("#")]
    about = [line for line in about if not line.startswith("@package")]
    end = next((i for i, line in enumerate(about) if line.endswith(".")), 0)
    return " ".join(about[: end + 1])


def _whole(role: str, name: str, keys: Row, about: str = "", **row: Any) -> str:
    """One name of a role for reading."""
    component = row.get("component", name)
    lines = [f"{role}={name}" + f": {component}" * (component != name)]
    lines += [f"  {line}".rstrip() for line in about.splitlines()]
    notes = {key: value for key, value in row.items() if key.startswith("with ")}
    lines += [f"  {key}: {', '.join(value)}" for key, value in notes.items()]
    for key, value in keys.items():
        text = value if isinstance(value, str) else json.dumps(value, default=str)
        lines.append(f"  {key}={text}")
    return "\n".join(lines)


def _text(role: str, components: list[Row], options: list[Row]) -> str:
    """One role for reading."""
    named = [row["name"] for row in components]
    named += [f"  {row['name']}" for row in options]
    column = max(16, *map(len, named)) + 3

    def entry(name: str, *notes: str) -> Iterator[str]:
        told = "\n".join(
            "\n".join(wrap(note, _WIDTH - column)) for note in notes if note
        )
        first, *rest = told.split("\n")
        yield f"{name:<{column}}{first}".rstrip()
        yield from (" " * column + line for line in rest)

    lines = [role]
    for row in components:
        fits = [
            f"{key}: {', '.join(value) or 'none'}"
            for key, value in row.items()
            if key.startswith("with ")
        ]
        lines += entry(
            f"  {row['name']}", row["summary"], row["reference"] or "", *fits
        )
    if options:
        lines.append(f"  {role}=")
        for row in options:
            lines += entry(f"    {row['name']}", row["summary"])
    return "\n".join(lines)
