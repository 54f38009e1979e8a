"""Errors of Hydra, torch and the machine, said in our words with what to type."""

from __future__ import annotations

import errno
import re
import traceback
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from diffusion_cli.config import COMPONENTS, flat, unknown
from diffusion_cli.errors import (
    ConfigError,
    DcliError,
    EnvironmentFault,
    OutOfMemory,
    StorageError,
)
from diffusion_cli.paths import assignment, shown
from diffusion_cli.registry import near
from diffusion_cli.usage import VERBS

_FULL = {errno.ENOSPC: "DISK-FULL", errno.EDQUOT: "DISK-FULL", errno.EROFS: "READONLY"}


def explain(problem: BaseException, verb: str = "train") -> DcliError:
    """The error to print for whatever ended a command."""
    if isinstance(problem, DcliError):
        return problem
    if isinstance(problem, MemoryError) or _is_out_of_memory(problem):
        hint = (
            "batch=<smaller>" if verb == "sample" else "trainer.micro_batch=<smaller>"
        )
        return OutOfMemory(f"memory: {_first_line(problem)}", hint, "MEMORY")
    if isinstance(problem, OSError) and problem.errno in _FULL:
        where = problem.filename or "disk"
        return StorageError(
            f"{where}: {problem.strerror}", "free some space", _FULL[problem.errno]
        )
    if "torchvision::" in str(problem):  # an operator that this build lacks
        torch, vision = (metadata.version(name) for name in ("torch", "torchvision"))
        text = f"torch {torch} does not go with torchvision {vision}"
        return EnvironmentFault(
            f"environment: {text}: {_first_line(problem)}",
            "pip install --upgrade torch torchvision",
            "ABI",
        )
    frames = traceback.extract_tb(problem.__traceback__)
    own = [f for f in frames if "torch" not in Path(f.filename).parts] or frames
    where = f" ({own[-1].filename}:{own[-1].lineno})" if own else ""
    return DcliError(
        f"{type(problem).__name__}: {_first_line(problem)}{where}",
        "this is a bug of dcli or of a plug-in; report the traceback above",
        "BUG",
    )


def composition(problem: Exception, verb: str) -> DcliError:
    """The error to print for what Hydra refused; its own advice would append keys."""
    kinds = {kind.__name__ for kind in type(problem).__mro__}
    if "MissingConfigException" in kinds:
        return _missing(problem, verb)
    if "OverrideParseException" in kinds:
        return _unreadable(str(getattr(problem, "override", "")), verb)
    if "ConfigCompositionException" in kinds:
        return _override(problem, verb)
    if mark := getattr(problem, "problem_mark", None):
        reason = getattr(problem, "problem", None) or _first_line(problem)
        place = f"{mark.name}, line {mark.line + 1}"
        return ConfigError(f"{place}: not yaml: {reason}", "mend the file")
    if "TypeError" in kinds:  # Hydra's own, of a choice that is not a name
        message = "a choice such as guidance= takes a name, or a list of names"
        return ConfigError(message, f"dcli {verb} --help")
    if kinds & {"HydraException", "OmegaConfBaseException", "YAMLError", "ValueError"}:
        return ConfigError(_first_line(problem), f"dcli {verb} --help")
    return explain(problem, verb)


def blame(error: ConfigError, exp: str, overrides: list[str]) -> None:
    """Name the recipe whose argument a component chosen after it does not take."""
    typed = {word.lstrip("+").partition("=")[0] for word in overrides}
    for each in error.more or [error]:
        if match := re.match(r"([\w.]+): `\w+` takes no `(\w+)`", each.message):
            key = f"{match[1]}.{match[2]}"
            if key not in typed:
                each.hint = f"exp={exp} sets it; leave it out with '~{key}'"


def stray(
    message: str, words: list[str], known: Iterable[str], verb: str
) -> ConfigError:
    """`--steps 100`: keys have no dashes."""
    option = message.partition(": ")[2].partition(" ")[0]
    key, equals, value = option.lstrip("-").partition("=")
    if not equals and option in words:
        value, *_ = [*words[words.index(option) + 1 :], ""]
    if "=" in value or value.startswith("-"):
        value = ""
    guess = re.search(r"`([\w.]+)`", unknown(key, known, verb).message) if key else None
    meant = f"; did you mean `{guess[1]}={value or '...'}`?" if guess else ""
    return ConfigError(f"{message}{meant}", f"dcli {verb} --help")


def _missing(problem: Exception, verb: str) -> ConfigError:
    """`sampler=huen`: the group has no such option, or there is no such group."""
    file = str(getattr(problem, "missing_cfg_file", None) or "")
    options = list(getattr(problem, "options", None) or ())
    group, _, name = file.rpartition("/")
    family = [option for option in options if option.startswith(f"{name}_")]
    if len(family) > 1:
        message = f"{group}: there is no `{name}`"
        return ConfigError(message, f"{group}= takes {', '.join(family)}")
    if options:
        names = ", ".join(options) if len(options) <= 12 else f"dcli list {group}"
        return ConfigError(
            f"{group}: there is no `{name}`{near(name, options)}",
            f"{group}= takes {names}" if len(options) <= 12 else names,
        )
    if group in (*COMPONENTS, "exp"):
        return ConfigError(f"{group}: there is no `{name}`", f"dcli list {group}")
    if group:
        return unknown(group, (*COMPONENTS, "exp"), verb)
    return ConfigError(f"{file}: there is no such config", f"dcli {verb} --help")


def _unreadable(override: str, verb: str) -> ConfigError:
    """An argument that Hydra's grammar does not read."""
    key, equals, value = override.partition("=")
    if not equals:
        trains = VERBS[verb].config == "train"
        if Path(override).is_dir() and not trains:
            message = f"`{override}`: a path without its key"
            return ConfigError(message, assignment("ckpt", override))
        message = f"`{override}`: expected key=value"
        meant = (
            f"exp={override} for a recipe" if trains else f"ckpt={override} for a run"
        )
        return ConfigError(message, f"{meant}, or dcli {verb} --help")
    message = f"{key}: the value `{shown(value)}` cannot be read"
    if value == "~" or value.startswith("~/"):
        return ConfigError(message, f'"{key}=$HOME{value[1:]}"')
    again = assignment(key, value.strip("'\""))
    return ConfigError(message, f"quote it twice: {again}")


def _override(problem: Exception, verb: str) -> ConfigError:
    """An override that reads well but does not fit the config."""
    text = str(problem)
    if match := re.search(r"Could not override '([^']+)'", text):
        parent = getattr(problem.__cause__, "parent_node", None)
        if parent is None:
            takes = f"`dcli {verb}` takes no `{match[1]}`"
            return ConfigError(f"{match[1]}: {takes}", f"dcli {verb} --help")
        own = [k for k in flat(parent._get_root()) if not k.startswith("hydra.")]
        return unknown(match[1], [*COMPONENTS, "exp", *own], verb)
    if match := re.search(r"Ambiguous value for argument '(([^=]+)=(.*))'", text):
        hint = "-m for a sweep"
        if match[2].partition("/")[0] not in COMPONENTS:  # of which there is one
            hint += f", or {match[2]}=[{match[3]}] for a list"
        return ConfigError(f"{match[2]}: several values, `{match[3]}`", hint)
    if match := re.search(r"Sweep parameters '(.+)' requires", text):
        return ConfigError(f"`{match[1]}` is a sweep", f"dcli {verb} -m {match[1]}")
    if match := re.search(r"already at '([^']+)'", text):
        return ConfigError(
            f"{match[1]}: is there already", f"{match[1]}=... without `+`"
        )
    cause = problem.__cause__
    detail = f": {_first_line(cause)}" if cause and str(problem) else ""
    return ConfigError(f"{_first_line(problem)}{detail}", f"dcli {verb} --help")


def _is_out_of_memory(problem: BaseException) -> bool:
    """torch's errors, known by name so that torch need not be imported."""
    return type(problem).__name__ == "OutOfMemoryError" or (
        isinstance(problem, RuntimeError) and "can't allocate memory" in str(problem)
    )


def _first_line(problem: BaseException) -> str:
    if not str(problem).strip() and problem.__cause__:
        return _first_line(problem.__cause__)
    text = str(problem).strip() or type(problem).__name__
    line = text.splitlines()[0].rstrip(".")
    return line[:1].lower() + line[1:] if line[1:2].islower() else line
