"""Where a sampler of few steps should take them: fitted to the denoiser at hand.

A grid is a density of steps over log(sigma / alpha) with a few knots (`Warped`). It is
judged by what it is for: how far its samples end from those of the same x_1 on the
exact trajectory of the probability-flow ODE. Knots move one at a time, by steps that
halve.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from diffusion_cli.denoiser import Denoiser
from diffusion_cli.rng import Rng
from diffusion_cli.samplers import Sampler

KNOTS = 6
SLOPES = (0.0, 0.5, 1.0, 2.0)  # first guesses: how much denser in the noise than below
FIRST = 0.8  # the first move of a knot: density times or by exp(0.8)


class Trajectories(NamedTuple):
    """Where trajectories begin, and where they end if they are followed exactly."""

    denoiser: Denoiser  # with the conditions of these trajectories
    start: Tensor  # x_1, (B, ...)
    end: Tensor  # x_0, (B, ...)
    rng: Rng

    @classmethod
    def followed(
        cls, denoiser: Denoiser, start: Tensor, rng: Rng, exact: Sampler
    ) -> Trajectories:
        """Trajectories from `start` to where a sampler of many steps leads them."""
        return cls(denoiser, start, last(exact, denoiser, start, rng), rng)

    def errors(self, sampler: Sampler) -> Tensor:
        """Root mean square errors of the samples that a sampler draws, (B,) float64."""
        found = last(sampler, self.denoiser, self.start, self.rng)
        return (found - self.end).double().square().flatten(1).mean(1).sqrt()


def last(sampler: Sampler, denoiser: Denoiser, x: Tensor, rng: Rng) -> Tensor:
    """The end of a trajectory."""
    *_, end = sampler.trajectory(denoiser, x, rng)
    return end


def badness(errors: Tensor) -> float:
    """The mean logarithm of errors: what few samples in chaos cannot outweigh."""
    return float(errors.clamp(min=1e-12).log().mean())


def search(
    bad: Callable[[Tensor], float], rounds: int
) -> Iterator[tuple[Tensor, float]]:
    """The best knots so far and how bad they are, after every trial.

    Args:
        bad: What is to be small; infinite where knots make no grid.
        rounds: How often every knot is moved, up or down, each time half as far.
    """
    even = torch.linspace(1, 0, KNOTS, dtype=torch.float64)
    best, least = even * 0, float("inf")
    for slope in SLOPES:
        if (found := bad(slope * even)) < least:
            best, least = slope * even, found
        yield best, least
    for turn in range(rounds):
        for knot in range(KNOTS):
            for move in (FIRST / 2**turn, -FIRST / 2**turn):
                trial = best.clone()
                trial[knot] += move
                found = bad(trial)
                better = found < least
                if better:
                    best, least = trial - trial.mean(), found
                yield best, least
                if better:
                    break


def most_trials(rounds: int) -> int:
    """No search takes more."""
    return len(SLOPES) + 2 * KNOTS * rounds
