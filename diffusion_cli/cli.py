"""The command line: verbs, the hand-over to Hydra, errors and exit codes.

Nothing heavy is imported before it is needed: `--help` sees neither Hydra nor torch,
and whatever Hydra refuses is refused before torch is imported.
"""

from __future__ import annotations

import gc
import os
import re
import sys
import warnings
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion_cli.errors import ConfigError, DcliError, Stopped, SweepError
from diffusion_cli.usage import VERBS, overview

if TYPE_CHECKING:
    from omegaconf import DictConfig


def main(argv: list[str] | None = None) -> int:
    """Run one command line; the exit code."""
    gc.disable()  # a quarter of the time that Hydra takes; commands enable it
    words = list(sys.argv[1:] if argv is None else argv)
    if "--debug" in words:
        words.remove("--debug")
        os.environ["DCLI_DEBUG"] = "1"
    try:
        code = _dispatch(words)
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


def report(problem: Exception, verb: str) -> int:
    """Print an error as its user needs it; its exit code."""
    import traceback

    error = problem
    if not isinstance(error, DcliError):
        from diffusion_cli.explain import explain

        error = explain(problem, verb)
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
    if not VERBS[verb].config:
        _command(verb)({}, rest)
        return 0
    return _compose(verb, rest)


def _command(verb: str) -> Any:
    """The `run` of a verb; its module imports torch."""
    import importlib

    return importlib.import_module(f"diffusion_cli.commands.{verb}").run


def _rewrite(word: str, sweep: bool) -> list[str]:
    """What Hydra is told for a word.

    `exp=x` appends the recipe. `guidance=[a,b]`, or `guidance=a,b` outside a sweep, are
    several nodes in order, each under its own name. An argument of a component is
    checked by its class: Hydra knows the keys that a yaml lists, a signature knows all;
    with `++` the signature has the word.
    """
    from diffusion_cli.config import COMPONENTS, STACKED

    key, _, value = word.partition("=")
    if key == "exp":
        return [f"+{word}"]
    several = re.fullmatch(r"\[([\w ,/-]*)\]" if sweep else r"\[?([\w ,/-]*)\]?", value)
    if key in STACKED and several and not re.fullmatch(r"[\w/-]+", value):
        names = [name.strip() for name in several[1].split(",")]
        nodes = [f"+{key}@{key}.{name}={name}" for name in names if name]
        return [f"{key}=none", *nodes] if key == "guidance" else nodes
    roles = "|".join((*COMPONENTS, *STACKED))
    return [f"++{word}" if re.fullmatch(rf"({roles})\.[^=]+", key) else word]


class _Left(BaseException):
    """Carries an error of a command through Hydra, which would print it in its way."""

    def __init__(self, problem: Exception) -> None:
        super().__init__()
        self.problem = problem


class _Jobs:
    """The task that Hydra runs, once or for every job of a sweep."""

    def __init__(self, verb: str) -> None:
        self.verb, self.done = verb, 0
        self.failed: list[str] = []

    def run(self, cfg: DictConfig) -> float | None:
        """Check the config and run the verb; a failed job does not end a sweep."""
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode
        from omegaconf import OmegaConf

        hydra = HydraConfig.get()
        overrides = OmegaConf.to_container(hydra.overrides.task)  # ${...} stays
        assert isinstance(overrides, list)
        sweep = hydra.mode == RunMode.MULTIRUN
        self.done += 1
        if sweep:
            print(f"job {hydra.job.num}: {' '.join(overrides)}", file=sys.stderr)
        try:
            return self._command(cfg, dict(hydra.runtime.choices), overrides)
        except Exception as problem:
            if not sweep or isinstance(problem, Stopped):
                raise _Left(problem) from problem
            code = report(problem, self.verb)
            job = f"job {hydra.job.num}: exit {code}: {' '.join(overrides)}"
            self.failed.append(job)
            return float("nan")

    def _command(
        self, cfg: DictConfig, choices: dict[str, str], overrides: list[str]
    ) -> float | None:
        from diffusion_cli import config, identity

        kind = VERBS[self.verb].config
        try:
            values = config.check(config.plain(cfg), kind)
        except ConfigError as error:
            if "exp" in choices:
                from diffusion_cli.explain import blame

                blame(error, choices["exp"], overrides)
            raise
        if kind == "train":
            values["name"] = values["name"] or identity.title(choices)
        from diffusion_cli import ranks

        devices = values.get("devices") or values.get("trainer", {}).get("devices", 1)
        if devices > 1 and ranks.standing() is None:
            return ranks.run(self.verb, values, overrides, devices)
        command = _command(self.verb)
        gc.enable()
        return command(values, overrides)  # type: ignore[no-any-return]


def _compose(verb: str, words: list[str]) -> int:
    """Let Hydra compose the config and run the verb with it."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises instead of printing and exiting
    import hydra
    from hydra._internal.hydra import Hydra
    from hydra._internal.utils import get_args_parser
    from hydra.core.plugins import Plugins

    from diffusion_cli import config

    # Hydra would compose the whole config once more, only to read `hydra.mode`
    Hydra.get_mode = _mode  # type: ignore[method-assign, assignment]
    Plugins.instance().register(config.PluginConfigs)
    parser = get_args_parser()
    parser.error = _usage_error  # type: ignore[method-assign, assignment]
    sweep = bool({"-m", "--multirun", "hydra.mode=MULTIRUN"} & set(words))
    rewritten = [each for word in words for each in _rewrite(word, sweep)]
    words = _options_first(rewritten)
    if parser.parse_args(words).experimental_rerun:
        raise ConfigError("--experimental-rerun: not supported, it reads a pickle")
    jobs = _Jobs(verb)

    def task(cfg: DictConfig) -> float | None:
        return jobs.run(cfg)

    argv, sys.argv = sys.argv, ["dcli", *words]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            hydra.main(
                version_base="1.3",
                config_path=str(config.folder()),
                config_name=VERBS[verb].config,
            )(task)()
    except _Left as left:
        raise left.problem from left.problem.__cause__
    except Exception as problem:
        from diffusion_cli.explain import composition

        if not jobs.done:
            _discard_sweep()
        raise composition(problem, verb) from problem
    finally:
        sys.argv = argv
    if jobs.failed:
        count = f"{len(jobs.failed)} of {jobs.done} jobs failed"
        table = "\n  ".join((count, *jobs.failed))
        raise SweepError(table, "mend them and run the same command again", "SWEEP")
    return 0


def _mode(hydra: object, config_name: str | None, overrides: list[str]) -> Any:
    """The mode that the command line asks for; None leaves it to `--multirun`."""
    from hydra.types import RunMode

    return RunMode.MULTIRUN if "hydra.mode=MULTIRUN" in overrides else None


def _discard_sweep() -> None:
    """Remove the folder that Hydra makes before it looks at the jobs of a sweep."""
    folder = Path("runs/.sweeps")
    (folder / "multirun.yaml").unlink(missing_ok=True)
    with suppress(OSError):  # others' files are in it
        folder.rmdir()
        folder.parent.rmdir()


def _options_first(words: list[str]) -> list[str]:
    """Options before overrides: argparse accepts them in no other order."""
    with_value = {"--config-dir", "-cd", "--config-name", "-cn", "--config-path", "-cp"}
    with_value |= {"--cfg", "-c", "--package", "-p"}
    options: list[str] = []
    rest: list[str] = []
    before = ""
    for word in words:
        belongs = word.startswith("-") or before in with_value
        (options if belongs else rest).append(word)
        before = word
    return options + rest


def _usage_error(message: str) -> None:
    raise ConfigError(message, "dcli --help")
