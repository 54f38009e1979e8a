"""The command line: verbs, errors and exit codes.

Nothing heavy is imported before it is needed: `--help` sees neither Hydra nor torch,
and whatever Hydra refuses is refused before torch is imported.
"""

from __future__ import annotations

import gc
import os
import sys
from typing import Any

from diffusion_cli.errors import ConfigError, DcliError
from diffusion_cli.stop import nothing_to_save
from diffusion_cli.usage import VERBS, overview


def main(argv: list[str] | None = None) -> int:
    """Run one command line; the exit code."""
    gc.disable()  # a quarter of the time that Hydra takes; commands enable it
    words = list(sys.argv[1:] if argv is None else argv)
    if "--debug" in words:
        words.remove("--debug")
        os.environ["DCLI_DEBUG"] = "1"
    try:
        with nothing_to_save():
            code = _dispatch(words)
        if sys.stdout:  # None if it was closed from the start
            sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader of a pipe has gone: nothing to say to it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as problem:  # every failure has an exit code
        return report(problem, words[0] if words else "")
    finally:
        gc.enable()


def told(problem: Exception, verb: str) -> DcliError:
    """What to say of whatever ended a command."""
    if isinstance(problem, DcliError):
        return problem
    from diffusion_cli.explain import explain

    return explain(problem, verb)


def report(problem: Exception, verb: str) -> int:
    """Print an error as its user needs it; its exit code."""
    import traceback

    error = told(problem, verb)
    debug = os.environ.get("DCLI_DEBUG", "0") not in ("", "0")
    if debug or error.exit_code == 1:
        traceback.print_exception(problem)
    if text := error.render():
        print(text, file=sys.stderr)
    return error.exit_code


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview(), end="")
        return 0
    if words[0] in ("-V", "--version"):
        from diffusion_cli import __version__

        print(f"dcli {__version__}")
        return 0
    verb, *rest = words
    if verb not in VERBS:
        from diffusion_cli.registry import near

        message = f"there is no verb `{verb}`{near(verb, VERBS)}"
        raise ConfigError(message, "dcli --help")
    if "-h" in rest or "--help" in rest:
        print(VERBS[verb].text, end="")
        return 0
    if verb == "train" and not set(rest) - {"-m", "--multirun"}:
        hint = "dcli train exp=digits, or another recipe of dcli list exp"
        raise ConfigError("train: nothing says what to train", hint)
    if not VERBS[verb].config:
        command(verb)({}, rest)
        return 0
    from diffusion_cli.compose import compose

    return compose(verb, rest)


def command(verb: str) -> Any:
    """The `run` of a verb; its module imports torch."""
    import importlib

    return importlib.import_module(f"diffusion_cli.commands.{verb}").run
