"""`dcli completion`: scripts for bash and zsh, and the words they ask for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, get_args

from diffusion_cli import config as keys
from diffusion_cli import records
from diffusion_cli.compose import complete
from diffusion_cli.config import COMPONENTS, MEASURING
from diffusion_cli.errors import ConfigError
from diffusion_cli.registry import hints
from diffusion_cli.usage import VERBS

_BASH = r"""
_dcli() {
    local line=${COMP_LINE:0:COMP_POINT} IFS=$'\n'
    local word=${line##* }
    COMPREPLY=($("${COMP_WORDS[0]}" completion words "$line" 2>/dev/null))
    # bash completes what follows the last `=` or `:`, which break its words
    local typed=${word%"${word##*[=:]}"}
    COMPREPLY=("${COMPREPLY[@]#"$typed"}")
    [[ ${COMPREPLY[0]} == *[=./] ]] && compopt -o nospace
}
complete -o default -F _dcli dcli
"""

_ZSH = r"""
_dcli() {
    local -a found
    found=("${(@f)$($words[1] completion words "${(j: :)words[1,CURRENT-1]} $PREFIX" \
        2>/dev/null)}")
    compadd -Q -S '' -- $found
}
compdef _dcli dcli
"""
SCRIPTS = {"bash": _BASH.lstrip(), "zsh": _ZSH.lstrip()}

_PARTS = "energy operator weight time grid schedule law survival".split()


def run(config: dict[str, Any], overrides: list[str]) -> None:
    """Print a completion script, or the words that may follow a line."""
    match overrides:
        case [shell] if shell in SCRIPTS:
            print(SCRIPTS[shell], end="")
        case ["words", line]:
            print("\n".join(words(line)))
        case _:
            raise ConfigError("completion: which shell?", "dcli completion bash")


def words(line: str) -> list[str]:
    """The words that may stand where `line` ends; `line` begins with the command."""
    typed = line.split(" ")
    verb, last = typed[1:2], typed[-1]
    if len(typed) <= 2:
        found = [*VERBS, "--help", "--version"]
    elif verb == ["list"]:
        found = [*COMPONENTS, *MEASURING, *_PARTS, "exp", "--json"]
    elif verb == ["runs"]:
        found = ["ls", "show", "diff", "sort=", "--json", *_runs()]
    elif verb == ["report"]:
        found = ["out=", *_runs()]
    elif verb == ["completion"]:
        found = list(SCRIPTS)
    elif verb[0] in VERBS:
        found = _arguments(VERBS[verb[0]].config, typed[2:])
    else:
        found = []
    return [word for word in found if word.startswith(last)]


def _runs() -> list[str]:
    return [str(path) for path in records.within(Path("runs"))]


def _arguments(config: str, typed: list[str]) -> list[str]:
    """Choices, their names and keys; Hydra knows `exp` as an appended choice."""
    key, equals, value = typed[-1].partition("=")
    if equals and (values := list(_values(config, key, value))):
        return [f"{key}={each}" for each in values]
    appended = [f"+{word}" if word.startswith("exp=") else word for word in typed]
    found = complete(config, " ".join(appended))
    if appended[-1] != typed[-1]:
        found = [word.removeprefix("+") for word in found]
    hidden: tuple[str, ...] = () if typed[-1].startswith("hydra") else ("hydra",)
    known = keys.VERBS[config]
    if known.laid_over:  # the rest is the run's own
        rest = {*COMPONENTS, "metric", "exp"} - set(known.roles) | {"dataset"}
        hidden += tuple(f"{role}=" for role in rest)
    elif known.roles:
        hidden += ("metric=",)
    found = [word for word in found if not word.startswith(hidden)]
    return [word for word in found if not equals or word != typed[-1]]


def _values(config: str, key: str, begun: str) -> Iterator[str]:
    """What a key of no component takes, where that can be told; runs have two names."""
    known = keys.VERBS[config]
    group, _, name = key.rpartition(".")
    holder = known.groups.get(group) if group else known.top
    annotation = hints(holder).get(name) if holder else None
    if annotation and key in ("ckpt", "init"):
        for run in _runs():
            yield run if begun.startswith("runs") else Path(run).name
    if annotation and key == "weights":
        yield from ("ema", "raw")
    yield from _options(annotation)


def _options(annotation: Any) -> Iterable[str]:
    """The words among what an annotation allows."""
    if annotation is bool:
        return ("true", "false")
    if isinstance(annotation, str):
        return (annotation,)
    return (word for inner in get_args(annotation) for word in _options(inner))
