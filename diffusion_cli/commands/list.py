"""`dcli list`: every component with one line, its reference and what it goes with."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from diffusion_cli import config, plugins
from diffusion_cli.errors import ConfigError
from diffusion_cli.registry import ROLES, Registry, near

Row = dict[str, Any]


def run(settings: dict[str, Any], overrides: list[str]) -> None:
    """Print one role, or all of them; `--json` for scripts."""
    words = [word for word in overrides if word != "--json"]
    if len(words) > 1:
        raise ConfigError(f"list: one role at a time, got {' '.join(words)}")
    names = [*config.COMPONENTS, "exp"]
    if words not in (["exp"], ["exps"]):  # recipes are files: no need of torch
        names += [role for role in config.roles() if role not in names]
    if words:
        names = [_role(words[0], names)]
    found: list[Row] = [
        {"role": name, "components": list(components(name)), "options": options(name)}
        for name in names
    ]
    if "--json" in overrides:
        print(json.dumps(found[0] if words else found, indent=2, ensure_ascii=False))
    else:
        print("\n\n".join(_text(**entry) for entry in found))


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
    for path in _files(registry.role):  # known when it is built, as its file says
        node = config.read(path)
        if node.get("name") == name:
            built: type = registry.build(node, **dict.fromkeys(registry.given)).needs
            return built
    return None


def _fits(registry: Registry[Any], name: str, process: type) -> bool:
    need = _need(registry, name)
    return need is None or issubclass(process, need)


def options(group: str) -> list[Row]:
    """The names that `group=` takes, with the first line of their file."""
    return [{"name": path.stem, "summary": _header(path)} for path in _files(group)]


def _files(group: str) -> list[Path]:
    folders = (config.folder(), *plugins.folders())
    return [path for each in folders for path in sorted((each / group).glob("*.yaml"))]


def _header(path: Path) -> str:
    """The first sentence of a file's comment, as far as it ends a line."""
    lines = path.read_text(encoding="utf-8").splitlines()
    about = [line[1:].strip() for line in lines if line.startswith("#")]
    about = [line for line in about if not line.startswith("@package")]
    end = next((i for i, line in enumerate(about) if line.endswith(".")), 0)
    return " ".join(about[: end + 1])


def _text(role: str, components: list[Row], options: list[Row]) -> str:
    """One role for reading."""
    lines = [f"{role}"]
    for row in components:
        lines.append(f"  {row['name']:<16} {row['summary']}")
        notes = [row["reference"] or ""]
        notes += [
            f"{key}: {', '.join(value) or 'none'}"
            for key, value in row.items()
            if key.startswith("with ")
        ]
        lines += [f"  {'':<16} {note}" for note in notes if note]
    if options:
        lines.append(f"  {role}=")
        lines += [f"    {row['name']:<14} {row['summary']}".rstrip() for row in options]
    return "\n".join(lines)
