"""Tables D and E: values that are not finite, memory that is not there, devices."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from harness import SAMPLE, TRAIN, Place, control, controls, place, says, trained
from tiny import outcome

from diffusion_cli import checkpoint

__all__ = ["controls", "place"]  # fixtures
pytestmark = pytest.mark.fault


def spoilt_network() -> None:
    """In the child: the third call of the network gives NaN."""
    from diffusion_cli.networks.mlp import MLP

    real, calls = MLP.forward, []

    def forward(network: Any, *args: Any, **more: Any) -> Any:
        calls.append(1)
        out = real(network, *args, **more)
        return out * float("nan") if len(calls) == 3 else out

    MLP.forward = forward  # type: ignore[method-assign]


def without_memory(calls: int) -> Callable[[], None]:
    """In the child: the network fits into memory so often, then no more."""

    def arrange() -> None:
        from diffusion_cli.networks.mlp import MLP

        real, seen = MLP.forward, []

        def forward(network: Any, *args: Any, **more: Any) -> Any:
            seen.append(1)
            if len(seen) > calls:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
            return real(network, *args, **more)

        MLP.forward = forward  # type: ignore[method-assign]

    return arrange


def little_memory() -> None:
    """In the child: the address space may grow by 400 MB."""
    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + (400 << 20), resource.RLIM_INFINITY))


def no_compiler() -> None:
    """In the child: torch finds no C++ compiler."""
    from torch._inductor import config

    config.cpp.cxx = (None, "/nowhere/g++")


def wrong_build() -> None:
    """In the child: torchvision was built for another torch."""
    from diffusion_cli.datasets.toy2d import Toy2D

    def prepare(data: Toy2D) -> None:
        raise RuntimeError("operator torchvision::nms does not exist")

    Toy2D.prepare = prepare  # type: ignore[method-assign]


class Row(NamedTuple):
    """A command, how it ends, and the step that is left."""

    name: str
    words: tuple[str, ...]
    code: int
    says: str
    fault: str = ""
    before: Callable[[], Any] | None = None
    step: int | None = None


RUN = tuple(TRAIN)
BAD = (
    r"error\[NONFINITE\]: trainer: NONFINITE step 7: loss=%s, grad_norm=\S+, lr=0.0002"
)
ROWS = [
    Row("D1-loss", RUN, 7, BAD % "nan" + ".*samples of the data", "step.loss@7:nan",
        None, 4),
    Row("D1-grad", RUN, 7, BAD % r"\d\S+" + ".*the gradient is not", "step.grad@7:nan",
        None, 4),
    Row("D2", (*RUN, "trainer.skip_nonfinite=1"), 0,
        r"(?s)step 6/12.*skipped 1/1 steps that were not finite\nstep 7/12  loss none",
        "step.loss@7:nan"),
    Row("D2-limit", (*RUN, "trainer.skip_nonfinite=2"), 7,
        r"(?s)skipped 1/2.*skipped 2/2.*NONFINITE step 3: loss=nan", "step.loss:nan"),
    Row("D8", (*SAMPLE, "steps=8"), 7,
        r"NONFINITE: sampler `ancestral` left the finite numbers at step 3 of 8", "",
        spoilt_network),
    Row("E1", (*RUN, "device=cuda"), 5, r"no CUDA device: .*\nhint: device=cpu"),
    Row("E1-auto", (*RUN, "device=auto"), 0, r"toy2d-ddpm  cpu, \d+ threads", step=12),
    Row("E2", RUN, 5, r"error\[ABI\].*torch \S+ .*torchvision \S+(.|\n)*hint: pip inst",
        "", wrong_build),
    Row("E3-index", (*RUN, "device=cuda:9"), 5, "no CUDA device|this machine has"),
    Row("E3-name", (*RUN, "device=gpu"), 2, "there is no `gpu`; did you mean `cuda`"),
    Row("E4", RUN, 8, r"step 7 with micro_batch=8: out of memory.*\nhint: "
        "trainer.micro_batch=4 keeps batch=8", "", without_memory(6), 4),
    Row("E6-preview", (*RUN, "every.preview=12"), 0, "preview at step 12: out of ",
        "", without_memory(12), 12),
    Row("E6-sample", SAMPLE, 8, "hint: batch=2", "", without_memory(1)),
    Row("E7", (*RUN, "trainer.batch=4000000"), 8, "hint: trainer.micro_batch=", "",
        little_memory),
    Row("E10", (*RUN, "trainer.compile=true"), 5, r"error\[COMPILE\]: trainer.compile: "
        ".*compiler.*\nhint: trainer.compile=false", "", no_compiler),
    Row("E9", (*RUN, "trainer.micro_batch=3"), 2, "must be a divisor of batch=8"),
]  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_numerics_and_memory(row: Row, place: Place) -> None:
    if row.words[0] == "sample":
        place.put(trained())
    hidden = {"CUDA_VISIBLE_DEVICES": ""}
    told = place.dcli(*row.words, fault=row.fault, before=row.before, **hidden)
    assert told.code == row.code, told.err
    says(told, row.says)
    if row.step:
        assert checkpoint.load(place.run).step == row.step
    if row.name.startswith("D1"):
        dump = next((place.run / "logs").glob("nonfinite_step_*.json"))
        assert len(json.loads(dump.read_text())["samples"]) == 8
    if row.code and row.step:
        errors = list((place.run / "logs").glob("error-rank0.txt"))
        assert len(errors) == 1 and "Traceback" in errors[0].read_text()
    if row.words[0] == "sample":
        assert not list(place.run.rglob("0*.png"))
    if row.step:  # the cause is gone
        assert place.dcli(*TRAIN).code == 0
        assert outcome(place.run) == control()
