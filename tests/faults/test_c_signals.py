"""Table C: signals, preemption, and a time that runs out."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from harness import SAMPLE, TRAIN, Child, Place, control, controls, place, says, trained
from PIL import Image
from tiny import outcome

from diffusion_cli import checkpoint

__all__ = ["controls", "place"]  # fixtures
pytestmark = pytest.mark.fault

INT, TERM, USR1, USR2 = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
SLOW = "step.loss@8:sleep:0.6"  # a signal after the line of step 7 finds step 8
WRITING = "ckpt.write:model.safetensors@0:sleep:1"
WRITTEN = f"{WRITING},step.loss@8:sleep:1.5"  # step 4 is saved before step 8 is


def once(number: int, to_all: bool = False) -> Callable[[Child], Any]:
    return lambda child: within(child, 8).send(number, to_all)


def within(child: Child, step: int) -> Child:
    """Wait until it sleeps in a step."""
    child.until(f"step {step - 1}/12")
    time.sleep(0.2)  # what follows the line of a step takes milliseconds
    return child


def twice(child: Child) -> None:
    child.until("step 7/12").send(INT, to_all=True)
    child.until("press again").send(INT, to_all=True)


def while_saving(child: Child) -> None:
    child.until("step 4/12")
    time.sleep(0.3)
    child.send(TERM)


def grace_is_short(child: Child) -> None:
    child.until("step 8/12")
    time.sleep(0.2)
    child.send(TERM)
    time.sleep(0.3)
    child.send(signal.SIGKILL)


def early(child: Child) -> None:
    child.until("data is built").send(TERM)


def importing(child: Child) -> None:
    child.until("torch is imported").send(TERM)


def a_scheduler() -> None:
    """In the child: somebody else's handler, who notes what it finds."""

    def requeue(number: int, frame: object) -> None:
        step = checkpoint.load("run").step
        Path("run/requeued").write_text(f"{number} {step}")

    signal.signal(USR1, requeue)
    signal.signal(USR2, requeue)


def a_long_build() -> None:
    """In the child: the data takes its time."""
    import sys

    from diffusion_cli.datasets.toy2d import Toy2D

    def prepare(data: Toy2D) -> None:
        print("data is built", file=sys.stderr)
        time.sleep(30)

    Toy2D.prepare = prepare  # type: ignore[method-assign]


def a_long_import() -> None:
    """In the child: components take their time to be imported."""
    import sys

    from diffusion_cli import config

    def roles() -> dict[str, Any]:
        print("torch is imported", file=sys.stderr)
        time.sleep(30)
        return {}

    config.roles = roles


class Row(NamedTuple):
    """What is sent to a run, how it ends and at which step it was saved."""

    name: str
    send: Callable[[Child], Any]
    code: int
    says: str
    step: int | None
    fault: str = SLOW
    before: Callable[[], Any] | None = None


SAVED = r"saved step_0000000%d; the same command continues"
ROWS = [
    Row("C1", once(INT, to_all=True), 130,
        "stopping after this step, press again to abort", 8),
    Row("C2", twice, 130, "aborted without saving", 4),
    Row("C3", once(TERM), 143, "SIGTERM: " + SAVED % 8, 8),
    Row("C4-build", early, 143, "SIGTERM: nothing to save", None, "", a_long_build),
    Row("C6-usr1", once(USR1), 138, "SIGUSR1: " + SAVED % 8, 8, SLOW, a_scheduler),
    Row("C6-usr2", once(USR2), 140, "SIGUSR2: " + SAVED % 8, 8, SLOW, a_scheduler),
    Row("C9", while_saving, 143, "SIGTERM: " + SAVED % 8, 8, WRITING),
    Row("C10", grace_is_short, -9, r"the last save took \d+\.\d s", 4, WRITTEN),
    Row("C14", importing, 143, "SIGTERM: nothing to save", None, "", a_long_import),
]  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_signals(row: Row, place: Place) -> None:
    child = place.start(*TRAIN, fault=row.fault, before=row.before)
    row.send(child)
    told = child.end()
    assert told.code == row.code, told.err
    says(told, row.says)
    if row.step is None:
        assert not place.run.exists()
    else:
        assert checkpoint.load(place.run).step == row.step
        saved = told.err.count(f"saved step_{row.step:08d}")
        assert saved == (row.name not in ("C2", "C10"))
    if row.before is a_scheduler:
        assert (place.run / "requeued").read_text() == f"{row.code - 128} {row.step}"
    assert place.dcli(*TRAIN).code == 0
    assert outcome(place.run) == control()


def photos(there: Place) -> tuple[str, ...]:
    """A folder of images, which workers read."""
    folder = there.file("photos/x", "").parent
    (folder / "x").unlink()
    for number in range(6):
        Image.new("RGB", (4, 4), (40 * number, 9, 9)).save(folder / f"{number}.png")
    words = "dataset=image_folder dataset.path=photos network=mlp".split()
    return (*(w for w in TRAIN if not w.startswith("dataset")), *words)


class Phase(NamedTuple):
    """A command that is signalled while it does something slow."""

    name: str
    words: tuple[str, ...]
    fault: str
    when: str
    says: str


def sampling(there: Place) -> None:
    """In the child: every call of the network takes its time."""
    from diffusion_cli.networks.mlp import MLP

    real = MLP.forward

    def forward(network: Any, *args: Any, **more: Any) -> Any:
        time.sleep(0.1)
        return real(network, *args, **more)

    MLP.forward = forward  # type: ignore[method-assign]


MANY = ("steps=500", "sampler.steps=500")
PREVIEW = ("every.preview=4", "sampler.steps=500")
EVAL = tuple("eval ckpt=run batch=4 device=cpu".split())
PHASES = [
    Phase("C4-preview", (*TRAIN, *PREVIEW), "", "drawing a preview", "SIGTERM: saved"),
    Phase("C4-sample", (*SAMPLE, "steps=500"), "", "weights", "SIGTERM: the same"),
    Phase("C4-eval-samples", (*EVAL, "metric=w2", "n=40", "steps=500"), "", "weights",
          "SIGTERM: the same command continues"),
    Phase("C4-eval", (*EVAL, "metric=elbo", "n=90"), "", "measuring", "SIGTERM"),
    Phase("C4-fit", ("fit", "ckpt=run", "device=cpu", "batch=1"), "", "fitting",
          "SIGTERM"),
]  # fmt: skip


@pytest.mark.parametrize("phase", PHASES, ids=lambda phase: phase.name)
def test_every_loop_hears_a_signal(phase: Phase, place: Place) -> None:
    if phase.words[0] != "train":
        place.put(trained())
    child = place.start(*phase.words, fault=phase.fault, before=lambda: sampling(place))
    if phase.name in ("C4-eval", "C4-fit"):
        time.sleep(2)  # they say nothing before their numbers
    else:
        child.until(phase.when)
        time.sleep(0.3)
    begun = time.monotonic()
    told = child.send(TERM).end()
    assert time.monotonic() - begun < 4  # two seconds and a call or two
    assert told.code == 143, told.err
    says(told, phase.says)


def test_workers_leave_with_an_aborted_run(place: Place) -> None:
    """C2 with loader processes, which got both signals too."""
    words = photos(place)
    many = ("trainer.workers=2", "trainer.steps=100000", "every.log=10")
    child = place.start(*words, *many, before=never_resident)
    child.until(r"step \d+0/").send(INT, to_all=True)
    child.until("press again").send(INT, to_all=True)
    told = child.end()
    assert told.code == 130, told.err


def never_resident() -> None:
    """In the child: images stay with the workers."""
    from diffusion_cli.datasets.images import Images

    Images.to = lambda data, device: False  # type: ignore[method-assign]


def test_requeued_again_and_again(place: Place) -> None:
    """C11: one metrics stream, no step twice."""
    for step in (3, 7):
        child = place.start(*TRAIN, fault=f"step.loss@{step + 1}:sleep:0.6")
        told = within(child, step + 1).send(TERM).end()
        assert told.code == 143, told.err
    told = place.dcli(*TRAIN)
    says(told, "resuming from step_00000008")
    assert told.code == 0 and outcome(place.run) == control()
    lines = (place.run / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 13))


def test_the_time_is_up(place: Place) -> None:
    """C12: a save, exit 0, and the same command goes on."""
    limit = ("trainer.time_limit=1s",)
    told = place.dcli(*TRAIN, *limit, fault="step.loss@5:sleep:1.2")
    assert told.code == 0
    says(told, r"time budget reached at step \d; the same command continues")
    status = json.loads((place.run / "status.json").read_text())
    assert status["status"] == "stopped"
    assert place.dcli(*TRAIN).code == 0
    assert outcome(place.run) == control()
