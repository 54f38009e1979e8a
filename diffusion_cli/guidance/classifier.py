"""Guidance by a classifier that another run trained."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from diffusion_cli.core import Spec
from diffusion_cli.denoiser import Context, Denoiser
from diffusion_cli.errors import ConfigError
from diffusion_cli.guidance import guidances
from diffusion_cli.guidance.gradients import At, Form, Tilt
from diffusion_cli.guidance.others import agree, carried, data_of
from diffusion_cli.processes.affine import Affine
from diffusion_cli.settings import require


@guidances("classifier")
class Classifier(Tilt):
    """Follows the gradient of log p(y | x_t), by a classifier that knows noise.

    score: E[x_0 | x_t] + scale (sigma^2 / alpha) grad log p(y | x_t)
    mean:  a step of variance V adds V scale grad log p(y | x_t)

    `form=score` serves every sampler; `form=mean` those whose steps draw, and the two
    agree as steps become small. `at=clean` asks the classifier, at its least noise,
    about E[x_0 | x_t] and differentiates through the model. Samples of label -1 are
    left alone. The classifier may know another schedule.

    Reference: Dhariwal and Nichol 2021, algorithms 1 and 2, arXiv:2105.05233.

    Args:
        run: A run of `objective=classify`: a folder, or the beginning of its name.
        scale: How far to go; 1 is Bayes' rule.
        form: What is moved.
        at: What the classifier looks at.
        label: One class for all samples; null takes the label of each.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        context: Context,
        run: str,
        scale: float = 1.0,
        form: Form = "score",
        at: At = "noisy",
        label: int | None = None,
    ) -> None:
        super().__init__(denoiser, scale, at, form)
        self.judge, self.label = context.model(run), label
        spec, own = self.judge.spec, data_of(denoiser)
        if self.judge.parametrisation.about != "label":
            raise ConfigError(
                f"guidance.run: `{run}` tells x_0, not labels",
                "dcli train ... objective=classify parametrisation=classes",
            )
        agree(denoiser, self.judge, run)
        if label is None and not own.classes:
            raise ConfigError(
                "guidance.label: the model knows no labels, so say which one",
                f"guidance.label=<0 .. {spec.classes - 1}>",
            )
        if own.classes and (own.classes, own.names) != (spec.classes, spec.names):
            raise ConfigError(
                f"guidance.run: `{run}` knows {_labels(spec)}, "
                f"the model {_labels(own)}",
                "guidance.run=<a classifier of the same data>",
            )
        within = label is None or 0 <= label < spec.classes
        require(within, "label", label, f"in 0 .. {spec.classes - 1}")

    def noisy(self, x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        there = cast(Affine, self.judge.process)
        return self._log_p(*carried(x, t, cast(Affine, self.process), there), cond)

    def clean(self, x0: Tensor, **cond: Tensor) -> Tensor:
        there = cast(Affine, self.judge.process)
        t = torch.tensor(there.span[0], dtype=torch.float64)
        return self._log_p(there.schedule(t).alpha * x0, t, cond)

    def _log_p(self, x: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """log p(y | x_t), 0 where there is no label; (B,)."""
        if self.label is None:
            label = cond["label"]
        else:
            label = torch.full((len(x),), self.label, device=x.device)
        q = self.judge(x, t)
        log_p = -q.nll(label.clamp(min=0)[:, None]).squeeze(1)
        return torch.where(label < 0, 0.0, log_p)


def _labels(spec: Spec) -> str:
    shown = ", ".join(spec.names[:3])
    return (
        f"{spec.classes} labels ({shown}, ...)" if shown else f"{spec.classes} labels"
    )
