"""Which jobs a search runs: Optuna asks, a launcher answers."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from diffusion_cli.errors import ConfigError
from diffusion_cli.settings import require
from diffusion_cli.sweep import plain
from diffusion_cli.trial import GIVEN_UP, NAME, STUDY, optuna, study


class Search(Sweeper):
    """Trials one after another, or `n_jobs` at once; each is a job of the sweep.

    The study is a database in the sweep's folder: the same command continues it, and
    trials that were cut short are run to their end first. What a trial is worth is the
    value of its job.

    Reference: Akiba et al. 2019, arXiv:1907.10902.

    Args:
        home: The folder of the sweep.
    """

    def __init__(self, home: Path) -> None:
        self.home = home

    def setup(
        self,
        *,
        hydra_context: HydraContext,
        task_function: TaskFunction,
        config: DictConfig,
    ) -> None:
        """Take the sweeper's own config and the launcher."""
        node: Any = OmegaConf.to_container(config.hydra.sweeper, resolve=True)
        self.settings: dict[str, Any] = node
        self.parser = OverridesParser.create(hydra_context.config_loader)
        self.jobs = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run trials until there are `n_trials`; say which was best."""
        own = self.settings
        try:
            for key in ("n_trials", "n_jobs"):
                whole = isinstance(own[key], int) and own[key] >= 1
                require(whole, key, own[key], "a whole number >= 1")
            known = own["direction"] in ("minimize", "maximize")
            require(known, "direction", own["direction"], "minimize or maximize")
        except ValueError as error:
            raise ConfigError(f"hydra.sweeper.{error}") from error
        words = self.parser.parse_overrides(arguments)
        rest = [word for word in words if not word.is_sweep_override()]
        self.fixed = [str(word.input_line) for word in rest]
        swept = [word for word in words if word.is_sweep_override()]
        self.keys = {word.key_or_group: word.get_key_element() for word in swept}
        space = {word.key_or_group: distribution(word) for word in swept}
        if not space:
            hint = "optimizer.lr='tag(log,interval(1e-4,1e-2))'"
            raise ConfigError("hydra/sweeper: nothing is searched", hint)
        self.study = self._opened()
        state = optuna().trial.TrialState
        for trial in self.study.get_trials(states=(state.RUNNING,)):
            self._run([trial])  # cut short: the same job goes on
        while (
            left := own["n_trials"] - len(self.study.get_trials(deepcopy=False))
        ) > 0:
            count = min(left, own["n_jobs"])
            self._run([self.study.ask(space) for _ in range(count)])
        self._tell()

    def _opened(self) -> Any:
        """The study, made if this is its first command."""
        self.home.mkdir(parents=True, exist_ok=True)
        own, package = self.settings, optuna()
        storage = own["storage"] or f"sqlite:///{self.home.absolute()}/study.db"
        about = {"storage": storage, **{k: own[k] for k in ("prune", "warmup")}}
        (self.home / STUDY).write_text(json.dumps(about))
        package.create_study(
            study_name=NAME,
            storage=storage,
            direction=own["direction"],
            load_if_exists=True,
        )
        found = study(self.home)
        # what is asked depends on what is known, not on how often it was interrupted
        seed = own["seed"] + len(found.get_trials())
        found.sampler = package.samplers.TPESampler(seed=seed)
        return found

    def _run(self, trials: Sequence[Any]) -> None:
        """Run neighbouring trials, and keep what they are worth."""
        jobs = [
            self.fixed + [f"{self.keys[k]}={v}" for k, v in trial.params.items()]
            for trial in trials
        ]
        returned = self.jobs.launch(jobs, initial_job_idx=trials[0].number)
        state = optuna().trial.TrialState
        every = self.study.get_trials(deepcopy=False)
        for trial, job in zip(trials, returned, strict=True):
            value = job.return_value
            attributes = every[trial.number].user_attrs
            if GIVEN_UP in attributes:
                self.study.tell(trial.number, state=state.PRUNED)
            elif value is None or not math.isfinite(value):
                self.study.tell(trial.number, state=state.FAIL)
            else:
                self.study.tell(trial.number, value)

    def _tell(self) -> None:
        """The best trial, as arguments."""
        found = self.study.get_trials()
        states = Counter(trial.state.name for trial in found)
        pruned, failed = states["PRUNED"], states["FAIL"]
        told = f"{len(found)} trials, {pruned} given up, {failed} failed"
        try:
            best = self.study.best_trial
        except ValueError:  # there is none
            print(f"search: {told}", file=sys.stderr)
            return
        words = plain(f"{key}={value}" for key, value in best.params.items())
        told += f"; best: job {best.number}, {best.value:.5g}: {words}"
        print(f"search: {told}", file=sys.stderr)


def distribution(word: Override) -> Any:
    """Optuna's distribution for a word of the command line."""
    package, sweep = optuna().distributions, word.value()
    if not isinstance(sweep, IntervalSweep):
        return package.CategoricalDistribution(list(word.sweep_string_iterator()))
    low, high, log = sweep.start, sweep.end, "log" in sweep.tags
    assert low is not None and high is not None
    if isinstance(low, int) and isinstance(high, int):
        return package.IntDistribution(low, high, log=log)
    return package.FloatDistribution(float(low), float(high), log=log)
