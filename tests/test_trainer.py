"""The trainer: steps that mean the same however they are cut, and that stop in time."""

from __future__ import annotations

import math

import pytest
import torch
from tiny import CPU, Setup, same, snapshot, tiny
from torch import nn

from diffusion_cli import assemble
from diffusion_cli.device import precision
from diffusion_cli.ema import Average
from diffusion_cli.errors import ConfigError
from diffusion_cli.trainer import schedule


def still(setup: Setup) -> Setup:
    """Without dropout, whose masks follow the micro-batch."""
    for module in setup.state.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return setup


@pytest.mark.parametrize("micro_batch", [1, 2, 4])
def test_micro_batches_add_up(micro_batch: int) -> None:
    whole = still(Setup()).train(3)
    split = still(Setup(micro_batch=micro_batch)).train(3)
    for (name, p), q in zip(
        whole.model.named_parameters(), split.model.parameters(), strict=True
    ):
        torch.testing.assert_close(p, q, msg=name, rtol=1e-4, atol=1e-5)


def test_gradients_of_micro_batches_are_the_gradient() -> None:
    grads = []
    for micro_batch in (None, 2):
        setup = still(Setup(micro_batch=micro_batch, clip=0.0))
        setup.train(1)
        grads.append([p.grad.clone() for p in setup.state.model.parameters()])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_the_global_generator_decides_nothing() -> None:
    one = Setup()
    for step, _ in enumerate(one.trainer.run(one.state, one.batches())):
        torch.manual_seed(step + 100)
    assert same(snapshot(one.state), snapshot(Setup().train()))


def test_schedules() -> None:
    warm = [schedule(step, 10, 4, "constant") for step in (0, 1, 3, 4, 9)]
    assert warm == [0.25, 0.5, 1, 1, 1]
    assert schedule(0, 10, 0, "cosine") == 1
    assert schedule(7, 10, 4, "cosine") == pytest.approx(0.5)
    assert schedule(5, 10, 0, "linear") == pytest.approx(0.5)
    assert schedule(99, 1000, 25, "inverse_sqrt") == pytest.approx(0.5)
    assert schedule(30, 10, 0, "linear") == 0


def test_the_rate_reaches_the_optimiser() -> None:
    setup = Setup(warmup=4)
    rates = [p.lr for p in setup.trainer.run(setup.state, setup.batches())]
    assert rates == pytest.approx([0.0025, 0.005, 0.0075, 0.01, 0.01])
    assert setup.state.optimizer.param_groups[0]["lr"] == rates[-1]


def test_an_average_has_its_half_life() -> None:
    weight = torch.zeros(1)
    average = Average({"w": weight}, half_life=5, ramp=None)
    weight += 1
    for step in range(5):
        average.update(step)
    assert average.tensors["w"].item() == pytest.approx(0.5)
    assert average.name == "ema-5"


def test_the_ramp_starts_with_a_copy() -> None:
    average = Average({"w": torch.ones(1)}, half_life=1000, ramp=0.05)
    assert average.gain(0) == 1
    assert average.gain(100) == pytest.approx(1 - 0.5 ** (1 / 5))
    assert average.gain(10**9) == pytest.approx(1 - 0.5 ** (1 / 1000))


def test_averaged_weights_are_lent_only() -> None:
    state = Setup().train()
    before = snapshot(state)
    with state.averaged() as model:
        assert not model.training
        for name, weight in model.named_parameters():
            assert torch.equal(weight, state.averages[0].tensors[name])
    assert state.model.training and same(before, snapshot(state))


def test_clipping() -> None:
    setup = Setup(clip=1e-3)
    norms = [
        p.grad_norm.item() for p in setup.trainer.run(setup.state, setup.batches(1))
    ]
    left = torch.stack([p.grad.norm() for p in setup.state.model.parameters()]).norm()
    assert norms[0] > 0.1 and left.item() == pytest.approx(1e-3, rel=1e-3)


def test_autocast_surrounds_the_network_alone() -> None:
    setup = Setup(precision="bf16")
    seen: list[torch.dtype] = []
    last = [m for m in setup.state.model.network.modules() if isinstance(m, nn.Linear)]
    last[-1].register_forward_hook(lambda module, x, out: seen.append(out.dtype))
    progress = next(iter(setup.trainer.run(setup.state, setup.batches())))
    assert seen == [torch.bfloat16] and progress.losses.dtype == torch.float32
    assert all(p.dtype == torch.float32 for p in setup.state.model.parameters())


def test_precision_is_resolved() -> None:
    assert precision(CPU, "auto") in ("fp32", "bf16")
    assert precision(CPU, "bf16") == "bf16"
    with pytest.raises(ConfigError, match="fp16 needs a GPU"):
        precision(CPU, "fp16")


def test_trainable_freezes_the_rest() -> None:
    setup = Setup(trainable="network.*bias")
    before = {n: p.detach().clone() for n, p in setup.state.model.named_parameters()}
    setup.train()
    moved = {
        name
        for name, p in setup.state.model.named_parameters()
        if not torch.equal(before[name], p)
    }
    biases = {name for name in before if name.endswith("bias")}
    assert moved and moved <= biases == set(setup.state.averages[0].tensors)


def test_trainable_must_match_something() -> None:
    with pytest.raises(ConfigError, match="no parameter matches `netwrk"):
        Setup(trainable="netwrk.*")


def test_recompute_reaches_the_network() -> None:
    assert Setup(recompute="blocks").state.model.network.recompute == "blocks"


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "lion", "lamb", "amos"])
def test_the_state_survives_its_plain_form(name: str) -> None:
    values = tiny(optimizer={"name": name}, trainer={"precision": "fp32"})
    data = assemble.dataset(values)
    data.prepare()

    def fresh() -> Setup:
        setup = Setup()
        parts = assemble.parts(values, data.spec)
        setup.trainer.node = values["optimizer"]
        setup.state = setup.trainer.start(parts.model, parts.objective)
        return setup

    whole, first, second = fresh(), fresh(), fresh()
    whole.train(6)
    first.train(3)
    tensors, plain = first.state.tensors(), first.state.plain()
    second.state.restore(lambda file: tensors.get(file, {}), plain)
    second.train(6)
    assert same(snapshot(whole.state), snapshot(second.state))
    assert math.isfinite(float(snapshot(whole.state).popitem()[1].sum()))


def test_moments_come_back_in_the_layout_of_their_weights() -> None:
    """Fused kernels demand it: on CUDA the weights are channels_last."""
    network = {"name": "unet", "channels": 32, "multipliers": [1], "blocks": 1}
    parts = {"dataset": {"name": "digits"}, "network": network}
    setup = Setup(parts=parts, batch=2)
    setup.state.model.network.to(memory_format=torch.channels_last)
    setup.train(1)
    tensors, plain = setup.state.tensors(), setup.state.plain()
    packed = {
        file: {name: tensor.contiguous() for name, tensor in group.items()}
        for file, group in tensors.items()
    }
    setup.state.restore(packed.__getitem__, plain)
    for weight, moments in setup.state.optimizer.state.items():
        assert moments["exp_avg"].stride() == weight.stride()
    setup.train(2)
