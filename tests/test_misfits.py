"""Parts that each stand alone and make no sense together: refused with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Dcli

TOY = "train dataset=toy2d network.width=16 network.depth=1 trainer.steps=2 "
TOY += "trainer.batch=8 trainer.workers=0 every.preview=0 "
TEXT = TOY.replace("toy2d", "text dataset.length=8").replace(
    "width=16", "width=16 network.heads=2"
)
DIGITS = (
    TOY.replace("toy2d", "digits")
    .replace("network.depth=1", "")
    .replace("network.width=16", "network.channels=8")
)
OTHER = "process=radial process.law.name=data +process.law.dataset.name="
MISFITS = {
    TEXT + "process=uniform objective=idempotent sampler.steps=8": "process=idempotent",
    TEXT + "process=mask objective=idempotent": "process=idempotent",
    DIGITS + "process=cold_blur objective=idempotent": "(process=idempotent)",
    DIGITS + "process=cold_mask objective=idempotent": "(process=idempotent)",
    TOY + "process=vp sampler=heun guidance=large": "hint: sampler=ancestral",
    TOY + "process=vp sampler=eab guidance=clip,large": "`eab` uses none",
    TOY + "process=edm objective=idempotent": "(process=idempotent)",
    TEXT + "process=mask coupling=minibatch_ot coupling.size=8": "needs an affine",
    TEXT + "process=d3pm process.matrix=uniform process.beta_max=1.9": "at most 1",
    TOY + "process=vp objective=sliced coupling=minibatch_ot": "independent noise",
    TOY + "process=vp objective=implicit coupling=minibatch_ot": "independent noise",
    TOY + "process=pfgmpp process.D=0.001": "process.D: must be >= 0.5",
    TOY + "process=radial process.law.name=student process.law.D=0.01": ">= 0.5",
    DIGITS + "process=cold_blur sampler.fresh=0.3": "given with kernel=mix alone",
    DIGITS + "process=cold_blur coupling=minibatch_ot": "needs an affine process",
    TEXT + "process=edit coupling=minibatch_ot coupling.size=8": "needs an affine",
    TOY + "process=flow coupling=minibatch_ot coupling.size=6": "hint: coupling.size=4",
    TOY + OTHER + "text": "process.law.dataset: gives tokens (128,)",
    TOY + OTHER + "digits": "samples must have the shape (2,)",
}


@pytest.mark.parametrize("words", MISFITS)
def test_what_does_not_fit_is_refused(words: str, dcli: Dcli) -> None:
    found = dcli(*words.split())
    assert found.code == 2 and MISFITS[words] in found.err, found.err
    assert "law.dataset" in words or not Path("runs").exists()


def test_a_tiny_ratio_of_charges_divides_by_nothing(dcli: Dcli) -> None:
    """log(1 + tau) is 0 in float64 below 1e-16."""
    found = dcli(*TOY.split(), "process=pfgm", "objective.tau=1e-30")
    assert found.code in (0, 2, 7), found.err


def test_data_that_end_outside_of_a_law_are_counted(dcli: Dcli) -> None:
    """Two steps of training lead hardly any datum into the box."""
    words = TOY + "process=radial process.law.name=box out=run"
    assert dcli(*words.split()).code == 0
    found = dcli("eval", "ckpt=run", "metric=likelihood", "n=16")
    assert found.code == 0 and found.out.split()[1] == "inf", found.out
    assert "of 16 data end where the prior has no density" in found.err, found.err
