"""What a training that is a trial of a search says to it, and hears."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from diffusion_cli.errors import EnvironmentFault
from diffusion_cli.sweep import current

STUDY, NAME = "study.json", "dcli"  # how to reach the study; its name there
GIVEN_UP = "given_up"


def optuna() -> Any:
    """The package, or how to get it."""
    try:
        import optuna as package
    except ImportError as error:
        message = "hydra/sweeper: needs the package optuna"
        hint = "pip install 'diffusion-cli[search]'"
        raise EnvironmentFault(message, hint) from error
    package.logging.set_verbosity(package.logging.WARNING)
    return package


def study(home: Path) -> Any:
    """The study of a sweep's folder, with the pruner that it was made with."""
    package, about = optuna(), json.loads((home / STUDY).read_text())
    pruner = package.pruners.NopPruner()
    if about["prune"]:
        pruner = package.pruners.MedianPruner(n_startup_trials=about["warmup"])
    return package.load_study(study_name=NAME, storage=about["storage"], pruner=pruner)


def hopeless(step: int, value: float) -> bool:
    """Tell the search a number; whether this trial is to be given up.

    False where this process is no trial.
    """
    job = current()
    if job is None or not (job.home / STUDY).exists():
        return False
    found = study(job.home)
    number = next(t for t in found.get_trials(deepcopy=False) if t.number == job.number)
    trial = optuna().trial.Trial(found, number._trial_id)
    trial.report(value, step)
    if trial.should_prune():
        trial.set_user_attr(GIVEN_UP, step)
        return True
    return False
