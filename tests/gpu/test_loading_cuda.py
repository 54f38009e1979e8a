"""Resident data on a CUDA device: the bits of the CPU, and no wait for the device."""

import pytest
import torch

from diffusion_cli.datasets import datasets
from diffusion_cli.loading import MicroBatch, batches
from diffusion_cli.rng import Rng

pytestmark = pytest.mark.gpu


def steps(device: str, workers: int = 0) -> list[MicroBatch]:
    data = datasets["digits"]()
    data.prepare()
    data.flip = True  # type: ignore[attr-defined]
    loaded = batches(
        data,
        seed=1,
        first=5,
        last=9,
        batch=32,
        micro_batch=16,
        device=torch.device(device),
        workers=workers,
    )
    return [micro for step in loaded for micro in step]


@pytest.mark.parametrize("workers", [None, 0, 2])
def test_batches_have_the_bits_of_the_cpu(
    workers: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = steps("cpu")
    if workers is not None:  # not resident: pinned memory
        monkeypatch.setattr("diffusion_cli.datasets.images.RESIDENT", 0)
    found = steps("cuda", workers or 0)
    for one, two in zip(wanted, found, strict=True):
        assert two.x0.is_cuda and two.rows.is_cuda and two.cond["label"].is_cuda
        assert torch.equal(one.x0, two.x0.cpu())
        assert torch.equal(one.rows, two.rows.cpu())
        assert torch.equal(one.cond["label"], two.cond["label"].cpu())


def test_a_resident_batch_does_not_wait_for_the_device() -> None:
    data = datasets["digits"]()
    data.prepare()
    data.flip = True  # type: ignore[attr-defined]
    assert data.to(torch.device("cuda"))
    rows = torch.arange(16, device="cuda")
    data.batch(rows, Rng(0, rows))
    torch.cuda.set_sync_debug_mode("error")
    try:
        data.batch(rows, Rng(0, rows, step=3).child("augment"))
    finally:
        torch.cuda.set_sync_debug_mode("default")
