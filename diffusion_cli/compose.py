"""The hand-over to Hydra: it composes the config and plays the jobs of a sweep."""

from __future__ import annotations

import gc
import os
import re
import sys
import warnings
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.plugins.completion_plugin import DefaultCompletionPlugin
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from diffusion_cli import cli, config, identity, ranks
from diffusion_cli import sweep as sweeps
from diffusion_cli.config import COMPONENTS, STACKED
from diffusion_cli.errors import ConfigError, DcliError, Stopped, SweepError
from diffusion_cli.explain import blame, composition, stray
from diffusion_cli.usage import VERBS

TEXTS = ("prompt", "guidance.prompt")


def _rewrite(word: str, sweep: bool) -> list[str]:
    """What Hydra is told for a word.

    `exp=x` appends the recipe. `guidance=[a,b]`, or `guidance=a,b` outside a sweep, are
    several nodes in order, each under its own name. An argument of a component is
    checked by its class: Hydra knows the keys that a yaml lists, a signature knows all;
    with `++` the signature has the word. A prompt is any text, so it is quoted.
    """
    key, _, value = word.partition("=")
    plain = not re.fullmatch(r"null|'.*'|\".*\"|", value, re.DOTALL)
    if key in TEXTS and plain and not sweep:
        quoted = re.sub(r"(\\*)('|$)", _escaped, value)
        word = f"{key}='{quoted}'"
    if key == "exp":
        return [f"+{word}"]
    several = re.fullmatch(r"\[([\w ,/-]*)\]" if sweep else r"\[?([\w ,/-]*)\]?", value)
    if key in STACKED and several and not re.fullmatch(r"[\w/-]+", value):
        names = [name.strip() for name in several[1].split(",")]
        nodes = [f"+{key}@{key}.{name}={name}" for name in names if name]
        return [f"{key}=none", *nodes] if key == "guidance" else nodes
    roles = "|".join((*COMPONENTS, *STACKED))
    return [f"++{word}" if re.fullmatch(rf"({roles})\.[^=]+", key) else word]


def _escaped(found: re.Match[str]) -> str:
    r"""A quote inside quotes; backslashes before it, and at the end, count twice."""
    return found[1] * 2 + found[2].replace("'", r"\'")


class _Left(BaseException):
    """Carries an error of a command through Hydra, which would print it in its way."""

    def __init__(self, problem: Exception) -> None:
        super().__init__()
        self.problem = problem


class _Jobs:
    """The task that Hydra runs, once or for every job of a sweep."""

    def __init__(self, verb: str, home: Path) -> None:
        self.verb, self.home = verb, home

    def run(self, cfg: DictConfig) -> float | None:
        """Check the config and run the verb; a failed job does not end a sweep."""
        own = HydraConfig.get()
        overrides: Any = OmegaConf.to_container(own.overrides.task)  # ${...} stays
        sweep = own.mode == RunMode.MULTIRUN
        job = sweeps.Job(self.home, own.job.num) if sweep else sweeps.current()
        if sweep:
            assert job is not None
            told = f"job {job.number}: {sweeps.plain(overrides)}"
            table = self.verb == "eval" and not cfg.json  # numbers need a head
            print(told, file=sys.stdout if table else sys.stderr, flush=True)
            if job.spent(tries := cfg.get("tries", 1)):
                print(f"it failed {tries} times: tries=<more>", file=sys.stderr)
                return float("nan")
        with sweeps.known_as(job):
            return self._attempt(cfg, overrides, job, sweep)

    def _attempt(
        self,
        cfg: DictConfig,
        overrides: list[str],
        job: sweeps.Job | None,
        sweep: bool,
    ) -> float | None:
        """Run the verb, and keep in the job's record how it ends."""
        if job is not None:
            job.begin(overrides)
            if sweeps.outdated():
                print("the code changed since this was submitted", file=sys.stderr)
        try:
            choices = dict(HydraConfig.get().runtime.choices)
            value = self._command(cfg, choices, overrides)
        except Exception as problem:
            error = cli.told(problem, self.verb)
            if job is not None:
                how = "stopped" if isinstance(error, Stopped) else "failed"
                job.end(how, error.exit_code, error.message, None)
            if not sweep or isinstance(error, Stopped):
                raise _Left(problem) from problem
            cli.report(problem, self.verb)
            return float("nan")
        except BaseException:  # aborted, or handed back to a scheduler
            if job is not None:
                job.end("stopped", 130, "", None)
            raise
        if job is not None:
            job.end("done", 0, "", value)
        return value

    def _command(
        self, cfg: DictConfig, choices: dict[str, str], overrides: list[str]
    ) -> float | None:
        kind = VERBS[self.verb].config
        try:
            values = config.check(config.plain(cfg), kind)
        except ConfigError as error:
            if "exp" in choices:
                blame(error, choices["exp"], overrides)
            raise
        if kind == "train":
            values["name"] = values["name"] or identity.title(choices)
        devices = values.get("devices") or values.get("trainer", {}).get("devices", 1)
        if devices > 1 and ranks.standing() is None:
            return ranks.run(self.verb, values, overrides, devices)
        command = cli.command(self.verb)
        gc.enable()
        return command(values, overrides)  # type: ignore[no-any-return]


def compose(verb: str, words: list[str]) -> int:
    """Let Hydra compose the config and run the verb with it."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises instead of printing and exiting
    config.demand_versions()
    # Hydra would compose the whole config once more, only to read `hydra.mode`
    Hydra.get_mode = _mode  # type: ignore[method-assign, assignment]
    parser = get_args_parser()
    parser.error = partial(_refuse, verb, words)  # type: ignore[assignment]
    sweep = bool({"-m", "--multirun", "hydra.mode=MULTIRUN"} & set(words))
    rewritten = [each for word in words for each in _rewrite(word, sweep)]
    options, overrides = _split(rewritten)
    if parser.parse_args([*options, *overrides]).experimental_rerun:
        raise ConfigError("--experimental-rerun: not supported, it reads a pickle")
    home = sweeps.folder(verb, words)
    if sweep:
        overrides.append(f"hydra.sweep.dir={home}")
    jobs = _Jobs(verb, home)
    _register(
        verb, [word for word in options if word not in ("-m", "--multirun")], home
    )

    def task(cfg: DictConfig) -> float | None:
        return jobs.run(cfg)

    argv, sys.argv = sys.argv, ["dcli", *options, *overrides]
    try:
        with warnings.catch_warnings(), sweeps.watched(home, _tell):
            warnings.simplefilter("ignore", UserWarning)
            hydra.main(
                version_base="1.3",
                config_path=str(config.folder()),
                config_name=VERBS[verb].config,
            )(task)()
    except _Left as left:
        raise left.problem from left.problem.__cause__
    except DcliError:
        raise
    except Exception as problem:
        if not sweeps.jobs(home):
            _discard(home)
        raise composition(problem, verb) from problem
    finally:
        sys.argv = argv
    if sweep:
        _sum_up(home)
    return 0


def _register(verb: str, options: list[str], home: Path) -> None:
    """Give Hydra the configs of plug-ins, and our launchers, which it does not know."""
    known = Plugins.instance()
    for kind in ("launcher", "sweeper"):
        schemas = ConfigStore.instance().repo["hydra"][kind]
        for own in (config.folder() / "hydra" / kind).glob("*.yaml"):
            schemas.pop(own.name, None)  # a plug-in's, which would refuse our keys
    known.register(config.PluginConfigs)

    def launcher(*, config: DictConfig, **named: Any) -> Launcher:
        if "_target_" in config.hydra.launcher:
            return Plugins.instantiate_launcher(known, config=config, **named)
        from diffusion_cli.launchers import Jobs

        made = Jobs(verb, options, home)
        made.setup(config=config, **named)
        return made

    def sweeper(*, config: DictConfig, **named: Any) -> Sweeper:
        if "_target_" in config.hydra.sweeper:
            return Plugins.instantiate_sweeper(known, config=config, **named)
        from diffusion_cli.search import Search

        made = Search(home)
        made.setup(config=config, **named)
        return made

    known.instantiate_launcher = launcher  # type: ignore[method-assign,assignment]
    known.instantiate_sweeper = sweeper  # type: ignore[method-assign]


def _sum_up(home: Path) -> None:
    """A sweep's end: an error with a table if some jobs are not done."""
    every = sweeps.jobs(home)
    if left := [job.line() for job in every if job.status != "done"]:
        table = "\n  ".join((f"{len(left)} of {len(every)} jobs failed", *left))
        raise SweepError(table, "mend them and run the same command again", "SWEEP")


def _tell(text: str) -> None:
    print(text, file=sys.stderr)


def _mode(hydra: object, config_name: str | None, overrides: list[str]) -> Any:
    """The mode that the command line asks for; None leaves it to `--multirun`."""
    return RunMode.MULTIRUN if "hydra.mode=MULTIRUN" in overrides else None


def _discard(home: Path) -> None:
    """Remove the folder that Hydra makes before it looks at the jobs of a sweep."""
    (home / "multirun.yaml").unlink(missing_ok=True)
    with suppress(OSError):  # others' files are in it
        for folder in (home, *home.parents[:2]):
            folder.rmdir()


def _split(words: list[str]) -> tuple[list[str], list[str]]:
    """Options and overrides: argparse accepts them in no other order."""
    with_value = {"--config-dir", "-cd", "--config-name", "-cn", "--config-path", "-cp"}
    with_value |= {"--cfg", "-c", "--package", "-p"}
    options: list[str] = []
    rest: list[str] = []
    before = ""
    for word in words:
        belongs = word.startswith("-") or before in with_value
        (options if belongs else rest).append(word)
        before = word
    return options, rest


def _refuse(verb: str, words: list[str], message: str) -> None:
    cfg = _loader().load_configuration(VERBS[verb].config, [], RunMode.RUN)
    known = [key for key in config.flat(cfg) if not key.startswith("hydra.")]
    raise stray(message, words, known, verb)


class _Loader(ConfigLoaderImpl):
    """Hydra would complete a list as if it had keys."""

    def load_configuration(self, *words: Any, **named: Any) -> DictConfig:
        """The config, null in the place of every list."""
        cfg = super().load_configuration(*words, **named)
        return DictConfig(_without_lists(OmegaConf.to_container(cfg)))


def _without_lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_lists(item) for key, item in value.items()}
    return None if isinstance(value, list) else value


def _loader() -> _Loader:
    Plugins.instance().register(config.PluginConfigs)
    return _Loader(create_config_search_path(str(config.folder())))


def complete(config_name: str, line: str) -> list[str]:
    """What may follow `line`, the arguments typed so far, by Hydra's own rules."""
    return DefaultCompletionPlugin(_loader())._query(config_name, line)
