"""Optimisers: theory's oracles T17.1 to T17.3 and T17.5, and what the registry owes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffusion_cli.errors import ConfigError
from diffusion_cli.optimizers import optimizers
from diffusion_cli.optimizers.tensorwise import decay_groups

NAMES = optimizers.names()


def build(name: str, params: Any, **own: Any) -> torch.optim.Optimizer:
    return optimizers.build({"name": name, **own}, params=params)


def parameter(*shape: int, seed: int = 0) -> nn.Parameter:
    generator = torch.Generator().manual_seed(seed)
    return nn.Parameter(torch.randn(*shape, generator=generator, dtype=torch.float64))


def steps(name: str, p: nn.Parameter, grads: list[Tensor], **own: Any) -> None:
    optimizer = build(name, [p], **own)
    for g in grads:
        p.grad = g.clone()
        optimizer.step()


def test_lion_moves_every_entry_by_the_sign() -> None:
    p, g = parameter(5, 3), parameter(5, 3, seed=1).detach()
    before = p.detach().clone()
    steps("lion", p, [g], lr=0.1, weight_decay=0.3)
    torch.testing.assert_close(p.detach(), before - 0.1 * (g.sign() + 0.3 * before))


def test_lion_ignores_the_scale_of_gradients() -> None:
    grads = [parameter(6, seed=i).detach() for i in range(4)]
    one, other = parameter(6), parameter(6)
    steps("lion", one, grads)
    steps("lion", other, [1000 * g for g in grads])
    assert torch.equal(one, other)


def test_lion_with_equal_betas_is_signum() -> None:
    grads = [parameter(6, seed=i).detach() for i in range(5)]
    p = parameter(6)
    expected, momentum = p.detach().clone(), torch.zeros_like(p)
    steps("lion", p, grads, lr=0.1, betas=(0.9, 0.9), weight_decay=0.0)
    for g in grads:  # signum: the momentum first, then its sign
        momentum = 0.9 * momentum + 0.1 * g
        expected -= 0.1 * momentum.sign()
    torch.testing.assert_close(p.detach(), expected)


def test_lamb_moves_a_matrix_by_lr_times_its_norm() -> None:
    p, g = parameter(7, 4), parameter(7, 4, seed=1).detach()
    before = p.detach().clone()
    steps("lamb", p, [g], lr=0.01)
    moved = (p.detach() - before).norm()
    torch.testing.assert_close(moved, 0.01 * before.norm())


def test_lamb_caps_the_norm_at_ten() -> None:
    p, g = nn.Parameter(torch.full((8, 8), 100.0).double()), torch.ones(8, 8).double()
    before = p.detach().clone()
    steps("lamb", p, [g], lr=0.01)
    torch.testing.assert_close((p.detach() - before).norm(), torch.tensor(0.1).double())


def test_lamb_ignores_the_scale_of_gradients() -> None:
    grads = [parameter(6, 2, seed=i).detach() for i in range(4)]
    one, other = parameter(6, 2), parameter(6, 2)
    steps("lamb", one, grads, eps=0.0)
    steps("lamb", other, [1000 * g for g in grads], eps=0.0)
    torch.testing.assert_close(one.detach(), other.detach())


def test_lamb_trains_a_matrix_of_zeros() -> None:
    p = nn.Parameter(torch.zeros(3, 3))
    steps("lamb", p, [torch.ones(3, 3)], lr=0.01)
    torch.testing.assert_close(p.detach(), torch.full((3, 3), -0.01))


def test_amos_follows_a_table_by_hand() -> None:
    p = nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
    lr, beta, c, d, eta = 0.1, 0.9, 0.25, 0.25, 0.5
    x, v, b = 2.0, 0.0, 0.0
    grads = [1.0, -0.5, 2.0, 0.25, 1.5]
    for count, g in enumerate(grads, 1):
        v = beta * v + (1 - beta) * g * g
        mean = v / (1 - beta**count)
        gamma = lr**2 * g * g / mean / math.sqrt(1 + c * math.sqrt(lr) * b)
        brake = 1 + d * math.sqrt(lr * eta) * b
        x -= (lr * eta * g / math.sqrt(mean) + gamma * x / 2) / brake
        b += gamma * (1 + b)
    steps(
        "amos", p, [torch.tensor([g], dtype=p.dtype) for g in grads], lr=lr, beta=beta
    )
    assert p.item() == pytest.approx(x, rel=1e-6)


def test_amos_without_scale_only_decays() -> None:
    p = nn.Parameter(torch.tensor([3.0], dtype=torch.float64))
    steps("amos", p, [torch.ones(1, dtype=p.dtype)], lr=0.2, eta=1e-30)
    assert p.item() == pytest.approx(3.0 * (1 - 0.2**2 / 2), rel=1e-6)


def test_amos_leaves_a_tensor_without_gradient() -> None:
    p = parameter(4, 4)
    before = p.detach().clone()
    steps("amos", p, [torch.zeros(4, 4, dtype=p.dtype)] * 3)
    assert torch.equal(p.detach(), before)


SCALED = {
    "adamw": 0.05,
    "adam": 0.05,
    "sgd": 0.05,
    "lion": 0.02,
    "lamb": 0.05,
    "amos": 0.1,
}


@pytest.mark.parametrize("name", NAMES)
def test_converges_on_a_quadratic(name: str) -> None:
    """T17.5: below 1e-3 in 20 dimensions, the rate falling linearly to 0."""
    lr, curvature = SCALED[name], torch.linspace(0.2, 2, 20)
    p = nn.Parameter(torch.linspace(-1, 1, 20).reshape(4, 5))
    own = {"weight_decay": 0.0} if name in ("adamw", "lion", "lamb") else {}
    optimizer = build(name, [p], lr=lr, **own)
    for step in range(600):
        optimizer.zero_grad()
        loss = (curvature * (p.flatten() - 0.5).square()).sum() / 2
        loss.backward()
        optimizer.param_groups[0]["lr"] = lr * (1 - step / 600)
        optimizer.step()
    assert loss.item() < 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_found_inf_moves_nothing(name: str) -> None:
    p = nn.Parameter(torch.ones(3, 2))
    optimizer: Any = build(name, [p])
    for bad in (0.0, 1.0):
        before = p.detach().clone()
        state = {k: v.clone() for k, v in optimizer.state[p].items() if v is not None}
        p.grad = torch.full((3, 2), math.nan if bad else 0.5)
        optimizer.found_inf = torch.tensor(bad)
        optimizer.step()
        assert torch.equal(p.detach(), before) == bool(bad)
    assert all(torch.equal(optimizer.state[p][key], state[key]) for key in state)


@pytest.mark.parametrize("name", NAMES)
def test_a_bad_rate_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"optimizer\.lr: must be > 0, got -1"):
        build(name, [parameter(2)], lr=-1.0)


def test_norms_biases_and_embeddings_do_not_decay() -> None:
    module = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3), nn.GroupNorm(1, 3))
    decayed, spared = decay_groups(module)
    assert [p.shape for p in decayed["params"]] == [torch.Size([3, 4])]
    assert "weight_decay" not in decayed and spared["weight_decay"] == 0
    assert len(spared["params"]) == 4
