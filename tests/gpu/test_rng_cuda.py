"""Random numbers on a CUDA device: those of the CPU, by one kernel."""

import pytest
import torch

from diffusion_cli.rng import Rng, _kernel

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda:0")


def test_words_are_those_of_the_cpu_by_one_kernel() -> None:
    assert _kernel(CUDA) is not None
    rows = torch.tensor([0, 3, 2**32 - 1, 2**32])
    for rng in (Rng(1, rows), Rng(2**63 - 1, rows, 2**31 + 5, 2**32 - 1)):
        there = Rng(rng.seed, rows.to(CUDA), rng.step, rng.stream)
        assert torch.equal(there.words(1001).cpu(), rng.words(1001))


def test_one_kernel_is_launched_for_all_words() -> None:
    rng = Rng(0, torch.arange(512, device=CUDA))
    rng.words(3072)
    kinds = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=kinds) as seen:
        rng.words(3072)
        torch.cuda.synchronize()
    names = [event.name for event in seen.events() if "_words" in event.name]
    assert len(names) == 1
