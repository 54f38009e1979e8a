"""Randomness is a function of (seed, stream, step, sample), whatever the split."""

import pytest
import torch

from diffusion_cli.rng import Rng, philox, shuffled

VECTORS = [  # the known answers of Random123 for philox4x32-10
    ([0, 0, 0, 0], 0, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ([0xFFFFFFFF] * 4, 2**64 - 1, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        0x299F31D0A4093822,
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


@pytest.mark.parametrize(("counter", "seed", "answer"), VECTORS)
def test_philox_gives_the_known_answers(counter, seed, answer):
    words = philox([torch.tensor(word) for word in counter], seed)
    assert " ".join(f"{int(word):08x}" for word in words) == answer


def test_a_sample_does_not_depend_on_its_batch():
    whole = Rng(3, torch.arange(7), step=5).child("noise").normal((7, 3, 5))
    alone = Rng(3, torch.tensor([4]), step=5).child("noise").normal((1, 3, 5))
    assert torch.equal(whole[4:5], alone)


def test_streams_steps_and_seeds_differ():
    rng = Rng(3, torch.arange(4))
    draws = [rng, rng.at(1), rng.child("a"), rng.child("b"), Rng(4, torch.arange(4))]
    values = torch.stack([draw.uniform((4, 8)) for draw in draws]).flatten()
    assert len(values.unique()) == len(values)


def test_a_longer_draw_begins_with_the_shorter_one():
    rng = Rng(0, torch.arange(2))
    assert torch.equal(rng.normal((2, 9))[:, :6], rng.normal((2, 6)))


def test_moments_of_normals_and_uniforms():
    rng = Rng(0, torch.arange(1000))
    x = rng.normal((1000, 1000), torch.float64)
    error = 4 / 1000  # four standard errors of a mean of a million
    assert abs(x.mean()) < error
    assert abs(x.square().mean() - 1) < error * 2**0.5
    assert abs((x**4).mean() - 3) < error * 96**0.5
    assert abs((x[:, 1:] * x[:, :-1]).mean()) < error
    assert abs((x[1:] * x[:-1]).mean()) < error
    u = rng.uniform((1000, 1000))
    assert 0 < u.min() and u.max() < 1
    assert abs(u.mean() - 0.5) < error * (1 / 12) ** 0.5


@pytest.mark.parametrize("length", [1, 2, 3, 64, 1797])
def test_an_epoch_is_a_permutation(length):
    first = shuffled(torch.arange(length), length, seed=1)
    second = shuffled(torch.arange(length) + length, length, seed=1)
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(length))
    if length > 3:
        assert not torch.equal(first, second)
        assert not torch.equal(first, shuffled(torch.arange(length), length, seed=2))


def test_permutations_spread_uniformly():
    """Where element 0 lands over many epochs: chi-square with 15 degrees of freedom."""
    landed = shuffled(torch.arange(4000) * 16, 16, seed=0).bincount(minlength=16)
    statistic = ((landed - 250) ** 2 / 250).sum()
    assert statistic < 37.7  # 0.1 % quantile
