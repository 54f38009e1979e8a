"""On a GPU everything is on the GPU, and the host does not wait for it.

`fake_cuda` stands in for one: this finds tensors of the CPU among those of the device,
and hidden waits. It says nothing of kernels, memory or speed; `tests/gpu` does.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from choices import formulation, node, options
from fake_cuda import CUDA, FakeCuda, fake_cuda, plain
from formulations import data, parts
from tiny import CPU, Setup
from torch import Tensor

from diffusion_cli.cli import main
from diffusion_cli.loading import MicroBatch
from diffusion_cli.rng import Rng
from diffusion_cli.settings import TrainerSettings
from diffusion_cli.trainer import Trainer

# what has to look at the state before it knows what to do next
LOOKS = {
    "cached": "samplers/cached.py",  # has a token changed?
    "confident": "samplers/confident.py",  # is anything hidden?
    "first_hitting": "samplers/first_hitting.py",
    "dopri5": "odes.py samplers/adaptive.py",  # was the error small enough?
}
LIKELY = {"dopri5": "flow", "first_hitting": "mask", "tokens": "mask", "cached": "mask"}
LIKELY |= {"confident": "mask", "ln_z": "pfgm", "one_step": "pfgm"}
LIKELY |= {"improved": "cold_blur"}


@pytest.fixture
def gpu() -> Iterator[FakeCuda]:
    with fake_cuda() as mode:
        yield mode


def test_devices_do_not_mix(gpu: FakeCuda) -> None:
    x, one = torch.ones(3, device="cuda"), torch.ones(3)
    assert x.is_cuda and x.device == CUDA and (x + torch.tensor(2.0)).is_cuda
    for wrong in (
        lambda: x + one,
        lambda: one.mul_(x),
        lambda: torch.stack([x[0], one[0]]),
        lambda: torch.tensor(1.0).add_(x[0]),
        lambda: one[x.long()],
        lambda: torch.nn.Linear(3, 3)(x),
        lambda: torch.nn.Linear(3, 3).to("cuda")(one),
    ):
        with pytest.raises(RuntimeError, match="device"):
            wrong()
    with pytest.raises(TypeError, match="numpy"):
        x.numpy()
    assert gpu.waits == []


def test_waits_are_noted(gpu: FakeCuda) -> None:
    x, one = torch.ones(3, device="cuda"), torch.ones(3)
    waits = (
        lambda: x.sum().item(),
        lambda: bool(x[0] > 0),
        lambda: x.cpu(),
        lambda: one.to("cuda"),
        lambda: torch.tensor([1.0], device="cuda"),
        lambda: x[x > 0],
        lambda: x.nonzero(),
        lambda: one.copy_(x),
        lambda: x[torch.tensor([1])],
    )
    for count, wait in enumerate(waits, 1):
        wait()
        assert len(gpu.waits) == count, wait
    x[x > 0] = 2.0
    one.to("cuda", non_blocking=True)
    assert len(gpu.waits) == len(waits)


def weights(
    process: str, device: torch.device, gpu: FakeCuda | None = None, **changes: Any
) -> list[Tensor]:
    """What a few steps of training lead to; the later ones are to wait for nothing."""
    built, spec = parts(process, **changes)
    settings = TrainerSettings(steps=5, batch=8, precision="fp32", ema=[4.0])
    trainer = Trainer(
        settings, optimizer=node("optimizer", "adamw"), seed=3, device=device
    )
    state = trainer.start(built.model, built.objective)
    x0, index = data(spec, 8), torch.arange(8)
    common = built.objective.reference
    cond = {"reference": data(spec, common).to(device)} if common else {}
    batch = MicroBatch(x0.to(device), cond, index.to(device))
    for progress in trainer.run(state, ([batch] for _ in range(5))):
        if progress.step == 2 and gpu is not None:
            gpu.waits.clear()
    return [plain(weight.detach()) for weight in state.model.parameters()]


def assert_trains(process: str, **changes: Any) -> None:
    with fake_cuda() as gpu:
        there = weights(process, CUDA, gpu, **changes)
        assert gpu.waits == []
    for one, other in zip(there, weights(process, CPU, **changes), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("process", options("process"))
def test_every_formulation_trains(process: str) -> None:
    assert_trains(process)


PARTNERS: dict[str, dict[str, Any]] = {
    "hybrid": {"parametrisation": node("parametrisation", "learned")},
    "vlb": {"parametrisation": node("parametrisation", "learned")},
    "second_moment": {"parametrisation": node("parametrisation", "sn")},
}
SUITED = {"poisson_batch": "pfgm", "idempotent": "idempotent"}
SUITED |= {name: "mask" for name in ("cross_entropy", "token_bound", "token_hybrid")}
ELSEWHERE = {"classify", "implicit"}  # labels, or few coordinates


@pytest.mark.parametrize("objective", sorted({*options("objective")} - ELSEWHERE))
def test_every_objective_trains(objective: str) -> None:
    own = {"objective": node("objective", objective), **PARTNERS.get(objective, {})}
    assert_trains(SUITED.get(objective, "cosine"), **own)


def drawn(
    process: str, device: torch.device, gpu: FakeCuda | None = None, **changes: Any
) -> Tensor:
    """Samples of an untrained model."""
    built, spec = parts(process, **changes)
    built.model.onto(device).eval()
    index = torch.arange(4).to(device)
    rng = Rng(1, index).child("sample")
    shape = built.model.process.state(spec).shape
    x = built.model.process.prior((4, *shape), rng)
    denoiser = built.denoiser.given(rows=index)
    states = built.sampler.trajectory(denoiser, x, rng)
    x = next(states)
    if gpu is not None:
        gpu.waits.clear()
    *_, x = (x, *states)
    return plain(x)


def assert_samples(process: str, walk: str, **changes: Any) -> None:
    with fake_cuda() as gpu:
        there = drawn(process, CUDA, gpu, **changes)
        allowed = LOOKS.get(walk, "")
        waits = [w for w in gpu.waits if w.where.split(":")[0] not in allowed.split()]
        assert waits == []
    assert torch.equal(there, drawn(process, CPU, **changes))


@pytest.mark.parametrize("process", options("process"))
def test_every_formulation_is_sampled(process: str) -> None:
    assert_samples(process, formulation(process)["sampler"]["name"])


@pytest.mark.parametrize("sampler", options("sampler"))
def test_every_sampler_walks(sampler: str) -> None:
    chosen = {"sampler": node("sampler", sampler)}
    assert_samples(LIKELY.get(sampler, "vp"), sampler, **chosen)


UNET = {
    "dataset": {"name": "digits"},
    "network": {"name": "unet", "channels": 8, "multipliers": [1, 2], "attention": [4]},
}
LOSS = {"name": "denoise", "weight": {"name": "simple"}, "time": {"name": "uniform"}}
MODES: list[dict[str, Any]] = [
    {"precision": "bf16"},
    {"recompute": "blocks"},
    {"recompute": "attention"},
    {"recompute": "norms"},
    {"micro_batch": 2, "skip_nonfinite": 2},
    {"parts": {"optimizer": {"name": "lamb"}}},
    {"parts": {"optimizer": {"name": "amos"}}},
    {"parts": {"optimizer": {"name": "lion"}}},
    {"parts": {"objective": LOSS | {"time": {"name": "loss_aware"}, "drop": 0.2}}},
    {"parts": {"objective": LOSS | {"time": {"name": "uniform", "stratified": True}}}},
]


def steps(gpu: FakeCuda, **how: Any) -> Setup:
    setup = Setup(device=CUDA, **how | {"parts": {**UNET, **how.get("parts", {})}})
    for progress in setup.trainer.run(setup.state, setup.batches(5)):
        if progress.step == 2:
            gpu.waits.clear()
    return setup


@pytest.mark.parametrize("how", MODES, ids=str)
def test_no_way_to_train_waits(how: dict[str, Any]) -> None:
    with fake_cuda() as gpu:
        setup = steps(gpu, **how)
        assert gpu.waits == []
        assert setup.trainer.check(setup.state) == 0


def test_fp16_looks_at_its_overflow_alone() -> None:
    with fake_cuda() as gpu:
        setup = steps(gpu, precision="fp16")
        assert setup.state.step == 5
        assert {wait.where.split(":")[0] for wait in gpu.waits} == {
            "trainer.py",
            "latch.py",
        }


COMMANDS = [
    "",
    "steps=4 sampler=heun guidance=cfg label=3 trajectory=strip",
    "steps=4 sampler=heun sampler.churn=10 dtype=float64",
    "steps=4 sampler=ancestral guidance=[clip,large]",
    "steps=4 sampler=ancestral guidance=energy",
    "steps=4 guidance=inverse guidance.path=drawn",
    "steps=4 guidance=inpaint guidance.path=drawn",
    "steps=4 guidance=similarity guidance.energy.path=drawn",
    "steps=4 sampler=ddim encode=drawn",
    "steps=4 restore=drawn severity=0.7",
    "steps=4 interpolate=[0,1,2]",
    "steps=4 precision=bf16 weights=raw",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with previews that was stopped and resumed, and samples of it."""
    folder = tmp_path_factory.mktemp("gpu")
    words = "dataset=digits process=edm network=unet_digits network.channels=8 out=run"
    words += " objective.drop=0.1 trainer.batch=8 trainer.workers=1 every.save=4"
    words += " every.preview=4 device=cuda"
    draw = f"ckpt={folder}/run n=4 steps=3 out={folder}/drawn device=cuda"
    with pytest.MonkeyPatch.context() as patch, fake_cuda():
        patch.chdir(folder)
        assert main(["train", *words.split(), "trainer.steps=4"]) == 0
        assert main(["train", *words.split(), "trainer.steps=8"]) == 0
        assert main(["sample", *draw.split()]) == 0
    return folder


@pytest.mark.parametrize("words", COMMANDS)
def test_commands(run: Path, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run)
    with fake_cuda():
        code = main(["sample", "ckpt=run", "n=4", "device=cuda", *words.split()])
    assert code == 0


METRICS = ["elbo n=16", "calibration n=16", "loss_per_noise_level n=16"]
METRICS += ["likelihood n=8 metric.rtol=1e-2 metric.atol=1e-2"]


@pytest.mark.parametrize("words", METRICS)
def test_metrics(run: Path, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run)
    with fake_cuda():
        code = main(
            [
                "eval",
                "ckpt=run",
                "device=cuda",
                f"metric={words.split()[0]}",
                "batch=8",
                *words.split()[1:],
            ]
        )
    assert code == 0
