"""`dcli tune`: steps where a denoiser needs them."""

from __future__ import annotations

import json
import math
import shlex
from pathlib import Path

import pytest
import torch
from conftest import Dcli
from oracles import Known, NormalData, eight, gaussian, number, rows
from torch import Tensor

from diffusion_cli import tensorfile
from diffusion_cli.errors import CheckpointError
from diffusion_cli.samplers import grids, samplers
from diffusion_cli.samplers.noise_grid import Warped
from diffusion_cli.tuning import KNOTS, Trajectories, badness, most_trials, search

EDM = ("karras", {"sigma_min": 0.01, "sigma_max": 100.0})


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_a_flat_density_is_even_in_log_sigma() -> None:
    process = gaussian(EDM[0], **EDM[1])
    even = grids.build({"name": "log_sigma"})(process, 9)
    torch.testing.assert_close(Warped(torch.zeros(6))(process, 9), even)
    torch.testing.assert_close(Warped(torch.full((4,), 3.0))(process, 9), even)


@pytest.mark.parametrize("rho", [7.0, 20.0])
def test_a_falling_density_is_rho(rho: float) -> None:
    process = gaussian(EDM[0], **EDM[1])
    fall = math.log(1e4) / rho
    wanted = grids.build({"name": "rho", "rho": rho})(process, 12)
    found = Warped(double(fall, 0))(process, 12)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["linear", "vp", "straight", "karras"])
def test_the_grid_runs_over_the_whole_process(name: str) -> None:
    process = gaussian(name)
    times = Warped(double(2, 0, -1))(process, 10)
    assert times[0] == process.span[1] and times[-1] == 0
    assert bool((times.diff() < 0).all()) and times.dtype == torch.float64


def test_the_search_finds_the_smallest() -> None:
    goal = double(1, -1, 0.5, 0, -0.5, 0)

    def bad(knots: Tensor) -> float:
        return float((knots - knots.mean() - goal).square().sum())

    seen = list(search(bad, 6))
    assert len(seen) <= most_trials(6)
    assert [x for _, x in seen] == sorted((x for _, x in seen), reverse=True)
    assert len(seen[-1][0]) == KNOTS
    assert seen[-1][1] < 0.02 * seen[0][1]


def test_knots_that_make_no_grid_are_passed_over() -> None:
    def bad(knots: Tensor) -> float:
        return math.inf if float(knots[0]) > 0 else float(knots.square().sum())

    *_, (best, least) = search(bad, 3)
    assert math.isfinite(least) and best[0] <= 0


@pytest.mark.parametrize("oracle", ["normal", "eight"])
def test_a_tuned_grid_is_closer_to_trajectories_it_has_not_seen(oracle: str) -> None:
    """On exact denoisers, where nothing but the grid can be wrong."""
    process = gaussian(EDM[0], **EDM[1])
    spread = double(2.0, 0.5, 0.1, 0.02) ** 2
    denoiser = NormalData(process, spread) if oracle == "normal" else eight(process)
    size = 4 if oracle == "normal" else 2
    exact = samplers.build(_eab(200))

    def followed(first: int) -> Trajectories:
        rng = rows(first + 64)
        start = process.prior((first + 64, size), rng).double()[first:]
        return Trajectories.followed(denoiser, start, rows(64), exact)

    seen, other = followed(0), followed(64)
    sampler = samplers.build(_eab(7))
    own = badness(other.errors(sampler))

    def bad(knots: Tensor) -> float:
        sampler.grid = Warped(knots)
        return badness(seen.errors(sampler))

    *_, (sampler.grid.knots, _) = search(bad, 3)
    assert badness(other.errors(sampler)) < own - math.log(1.5)


def _eab(steps: int) -> dict:
    return {"name": "eab", "steps": steps, "grid": {"name": "rho", "rho": 20.0}}


def test_the_errors_of_normal_data_are_those_of_the_closed_form() -> None:
    process = gaussian(EDM[0], **EDM[1])
    denoiser = NormalData(process, 0.25)
    start = process.prior((8, 3), rows(8)).double()
    known = Trajectories.followed(denoiser, start, rows(8), samplers.build(_eab(200)))
    end = denoiser.exact(start, number(1.0), number(0.0))
    torch.testing.assert_close(known.end, end, rtol=1e-4, atol=1e-5)
    euler = samplers.build({**_eab(3), "name": "euler"})
    *_, x = euler.trajectory(denoiser, start, rows(8))
    wanted = (x - known.end).square().mean(1).sqrt()
    torch.testing.assert_close(known.errors(euler), wanted)


@pytest.mark.parametrize(
    "values",
    [{}, {"knots": torch.zeros(1)}, {"knots": double(0, math.nan)},
     {"knots": double(0, 1e6)}, {"knots": torch.zeros(2, 2)}],
)  # fmt: skip
def test_forged_grids_are_refused(values: dict[str, Tensor]) -> None:
    grid = grids.build({"name": "tuned"}, context=Known({"grid-5": values}))
    with pytest.raises(CheckpointError, match="not the values of a tuned grid"):
        grid(gaussian(*EDM[:1]), 5)


def test_tune_then_sample(dcli: Dcli) -> None:
    train = (
        "dataset=toy2d dataset.shape=eight_gaussians process=edm network.width=16 "
        "network.depth=1 trainer.batch=64 trainer.steps=60 every.preview=0 out=run"
    )
    assert dcli("train", *train.split()).code == 0
    sample = ("sample", "ckpt=run", "sampler=eab", "sampler.grid=tuned", "n=4")
    early = dcli(*sample, "steps=6")
    assert early.code == 2
    assert "dcli tune ckpt=" in early.err and "steps=6 sampler=eab" in early.err
    tune = ("tune", "ckpt=run", "n=32", "rounds=2")
    got = dcli(*tune, "nfe=6")
    assert got.code == 0, got.err
    assert "sampler.grid=tuned" in got.err and "typical error" in got.err
    folder = Path(got.out.strip())
    values = tensorfile.read(folder / "values.safetensors")
    own, new = values["errors"]
    assert badness(new) < badness(own) and len(own) == 16
    kept = (folder / "values.safetensors").read_bytes()
    assert dcli(*tune, "steps=6").code == 0
    assert (folder / "values.safetensors").read_bytes() == kept
    assert dcli(*sample, "nfe=6").code == 0
    assert dcli(*sample, "nfe=7").code == 2  # tuned for 6 alone
    for other in ("sampler.order=2", "weights=raw"):
        refused = dcli(*sample, "nfe=6", other)
        assert refused.code == 2 and other in refused.err
    worse = dcli("tune", "ckpt=run", "n=4", "rounds=1", "steps=6", "seed=1")
    assert worse.code == 0
    assert (folder / "values.safetensors").read_bytes() == kept


@pytest.mark.parametrize(
    "words",
    [
        "sampler=heun",
        "sampler=ddim",
        "sampler=unipc weights=raw",
        "sampler=eab sampler.order=2",
        "sampler=dpmpp guidance=cfg guidance.scale=2 guidance.low=0.1",
    ],
)
def test_the_command_it_prints_runs(dcli: Dcli, words: str) -> None:
    train = (
        "dataset=toy2d dataset.labels=true process=edm network.width=16 "
        "network.depth=1 trainer.batch=64 trainer.steps=40 every.preview=0 "
        "objective.drop=0.2 out=run"
    )
    assert dcli("train", *train.split()).code == 0
    got = dcli("tune", "ckpt=run", "n=32", "rounds=2", "steps=5", *words.split())
    assert got.code == 0, got.err
    line = next(line for line in got.err.splitlines() if line.startswith("dcli sample"))
    drawn = dcli(*shlex.split(line)[1:], "n=4")
    assert drawn.code == 0, drawn.err
    about = json.loads((Path(drawn.out.strip()) / "about.json").read_text())
    assert about["sampler"]["grid"] == {"name": "tuned"}


def test_what_cannot_be_tuned_is_refused(dcli: Dcli) -> None:
    train = "dataset=toy2d network.width=16 network.depth=1 trainer.steps=2"
    more = "trainer.batch=8 every.preview=0"
    assert dcli("train", *train.split(), *more.split(), "out=run").code == 0
    for words, message in (
        (("sampler=ancestral",), "draws noise"),
        (("sampler=dopri5",), "has no grid"),
        (("steps=1",), "steps: must be >= 2"),
        (("steps=4", "nfe=4"), "give steps= or nfe=, not both"),
        (("n=2",), "n: must be >= 4"),
        (("rho=3",), "there is no such key"),
    ):
        got = dcli("tune", "ckpt=run", *words)
        assert got.code == 2 and message in got.err, got.err
