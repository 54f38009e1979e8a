"""Paths as users type them, and how they are told again."""

from __future__ import annotations

import errno
import os
import re
import shlex
from pathlib import Path

from diffusion_cli.errors import ConfigError

_NAMES = r"(?!(?:null|true|false|inf|nan)$)"  # of values; numbers do not begin so
_PLAIN = re.compile(rf"(?i){_NAMES}(?:[a-z_/]|\.+/)[\w./+-]*", re.ASCII)
_LIVE = re.compile(r'["$`!\\]')  # means something between double quotes


def typed(text: str, key: str) -> Path:
    """The path that a user typed, `~` put in; `ConfigError` if there can be none."""
    try:
        path = Path(text).expanduser()
        os.lstat(path)
    except RuntimeError as error:  # `~name` of nobody
        message = f"{key}: `{shown(text)}`: there is no such user"
        raise ConfigError(message, f"./{text} for a folder of that name") from error
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:  # missing, locked: told where it is read
            return path
        message = f"{key}: `{shown(text[:40])}...`: {error.strerror}"
        raise ConfigError(message, "a shorter path") from error
    except ValueError as error:
        message = f"{key}: `{shown(text)}`: {error}"
        raise ConfigError(message, "a path of letters") from error
    return path


def shown(name: str) -> str:
    """A name for one line of a terminal: odd characters are escaped."""
    plain = name.isprintable() and not any("\ud800" <= c <= "\udfff" for c in name)
    return name if plain else ascii(name)[1:-1]


def assignment(key: str, value: str) -> str:
    """`key=value` to type in a shell, so that Hydra reads that value."""
    if _PLAIN.fullmatch(value):
        return f"{key}={value}"
    inner = re.sub(r"(\\*)'", r"\1\1\\'", f"{value}'")[:-2]  # Hydra's escapes
    word = f"{key}='{inner}'"
    return shlex.quote(word) if _LIVE.search(word) else f'"{word}"'
