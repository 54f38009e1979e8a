"""Randomness is a function of (seed, stream, step, sample), whatever the split."""

import hashlib

import pytest
import torch

from diffusion_cli import rng as module
from diffusion_cli.rng import Ahead, Rng, philox, shuffled

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


def test_numpy_and_torch_give_the_same_words():
    """In more pieces than one, the last of them short, and from more than 32 bits."""
    rows = torch.tensor([0, 9, 2**32 - 1, 9, 2**40 + 3, 9, -1, 9])[::2, None]
    element = torch.arange(module._AT_ONCE // 3)
    for seed in (0, 5, 2**62 + 7, 2**63 - 1):
        for count in (1, 3, 4):
            asked = ((element, rows, 2**31 + 5, -1), seed, count)
            words = module._by_numpy(*asked)
            assert words.shape == (4, len(element), count)
            assert torch.equal(words, module._by_torch(*asked))
    assert module._by_numpy((element[:0], 1, 2, 3), 0, 4).shape == (0, 4)


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


@pytest.mark.parametrize("length", [1, 3, 100, 1797, 50_000])
def test_words_that_are_looked_up_change_no_order(length, monkeypatch):
    index = torch.arange(700) + 2**35 - 300  # over several epochs of short sets
    calls = []
    monkeypatch.setattr(
        module, "philox", lambda *a, real=philox: calls.append(a) or real(*a)
    )
    found = shuffled(index, length, seed=5)
    assert len(calls) == 1
    apart = torch.cat([shuffled(one, length, seed=5) for one in index.split(50)])
    assert torch.equal(found, apart)
    monkeypatch.setattr(module, "_CASES", 0)
    few = index[:1]  # fewer positions than cases: none is looked up
    calls.clear()
    assert torch.equal(shuffled(few, length, seed=5), found[:1])
    assert len(calls) >= 4


def test_no_positions_are_no_elements():
    assert shuffled(torch.arange(0), 10, seed=0).tolist() == []


def test_permutations_spread_uniformly():
    """Where element 0 lands over many epochs: chi-square with 15 degrees of freedom."""
    landed = shuffled(torch.arange(4000) * 16, 16, seed=0).bincount(minlength=16)
    statistic = ((landed - 250) ** 2 / 250).sum()
    assert statistic < 37.7  # 0.1 % quantile


# of the numbers that runs were drawn with
DRAWS = "85b44a8c7ac31dd952666af72b5db09f11762bf091b6e12c2b259182696bc80c"


def test_runs_of_earlier_versions_draw_the_same_numbers():
    """Exact integers and uniforms, whatever the shape; normals are tested below."""
    seen = hashlib.sha256()
    rows = torch.tensor([0, 9, 2**32 + 3, 9, 5, 9])[::2]
    for seed in (0, 7, 2**63 - 1):
        for step, stream in ((0, 0), (16, 99), (2**40 + 3, 2**32 - 1)):
            rng = Rng(seed, rows, step, stream)
            draws = [rng.words(count) for count in (1, 4, 67)]
            draws += [rng.uniform((3, 5)), rng.child("a").integers(10, (3, 2, 2))]
            for draw in (*draws, rng.shared().words(3)):
                seen.update(draw.contiguous().numpy().tobytes())
        for length in (1, 3, 1797, 50_000, 2**33 + 1):
            place = torch.arange(2**45, 2**45 + 300)
            seen.update(shuffled(place, length, seed).numpy().tobytes())
    assert seen.hexdigest() == DRAWS


@pytest.mark.parametrize("shape", [(3,), (3, 1), (3, 5), (3, 2, 4, 9), (3, 3, 32, 32)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_normals_are_box_mullers_of_the_uniforms(shape, dtype):
    rng = Rng(3, torch.tensor([0, 9, 4]), step=8)
    count = torch.Size(shape[1:]).numel()
    one, two = rng.uniform((3, (count + 1) // 2, 2)).unbind(-1)
    radius, angle = (-2 * one.log()).sqrt(), 2 * torch.pi * two
    both = torch.stack((radius * angle.cos(), radius * angle.sin()), -1)
    wanted = both.flatten(1)[:, :count].to(dtype).reshape(shape)
    assert torch.equal(rng.normal(shape, dtype), wanted)


def test_numbers_made_ahead_are_the_same():
    rows = torch.tensor([7, 3, 2**33])
    plain, ahead = Rng(5, rows), Ahead(Rng(5, rows))
    far = module._AT_ONCE // 3
    for step in (0, 1, 2, far - 1, far, 5 * far, 3, 2**32 - 1, 2**32, 2**32 + 1):
        for name in ("a", "b"):
            for count in (1, 3, 4, 5):
                one, two = (r.child(name).at(step) for r in (plain, ahead))
                assert torch.equal(one.words(count), two.words(count))
                two.words(count).zero_()  # what a caller does to them stays its own
            assert torch.equal(one.normal((3, 2)), two.normal((3, 2)))
            assert torch.equal(one.of(rows[1:]).words(2), two.of(rows[1:]).words(2))
            assert torch.equal(one.shared().words(2), two.shared().words(2))


def test_numbers_made_ahead_take_few_calls(monkeypatch):
    asked = []
    monkeypatch.setattr(
        module,
        "_by_numpy",
        lambda *a, real=module._by_numpy: asked.append(a) or real(*a),
    )
    ahead = Ahead(Rng(5, torch.arange(128)))
    for step in range(module._AT_ONCE // 128):
        ahead.at(step).child("flip").words(1)
    assert len(asked) == 7  # 1, 3, 7, .. steps: 127 by six calls, and the last
    assert len(Ahead(Rng(0, torch.arange(0))).words(2)) == 0


def test_a_stream_for_every_step_takes_neither_memory_nor_other_steps(monkeypatch):
    made = []
    monkeypatch.setattr(
        module,
        "_by_numpy",
        lambda *a, real=module._by_numpy: made.append(real(*a)) or made[-1],
    )
    ahead = Ahead(Rng(5, torch.arange(8)))
    for step in range(100):
        ahead.at(step).child(f"step {step}").words(1)
        ahead.at(step).child("flip").words(1)
    assert len(ahead._made) <= module._STREAMS
    assert sum(words.numel() for words in made) < 100 * 8 + 2 * 100 * 8 + 8
