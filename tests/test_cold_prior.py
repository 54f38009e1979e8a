"""The fitted prior of the cold process, and the priors of others."""

import pytest
import torch
from degraded import SPEC, N, cold, fitted, images, others
from oracles import number, rows

from diffusion_cli.core import Point, Spec
from diffusion_cli.errors import ConfigError
from diffusion_cli.processes import processes


@pytest.mark.parametrize("name", ["blur", "pixelate"])
def test_the_prior_has_the_statistics_of_the_means(name):
    """Mean and covariance of the per-channel means of the data, and a little noise."""
    process, n = cold({"name": name}, jitter=0.0), 40_000
    mix = torch.tensor([[0.3, 0, 0], [0.2, 0.1, 0], [-0.1, 0.2, 0.05]]).double()
    place = torch.tensor([0.1, -0.3, 0.5]).double()
    means = rows(2000).normal((2000, 3)).double() @ mix.T + place
    x0 = images(2000, 1) + means[:, :, None, None]
    exact = x0.mean((2, 3))
    process.fit(part.float() for part in x0.split(300))
    x = process.prior((n, *SPEC.shape), rows(n, 5))
    assert torch.equal(x, x[:, :, :1, :1].expand_as(x))
    drawn = x[:, :, 0, 0].double()
    spread = exact.T.cov()
    error = 4 * spread.diagonal().sqrt() / n**0.5
    assert bool(((drawn.mean(0) - exact.mean(0)).abs() < error).all())
    scale = spread.diagonal().sqrt()
    gap = (drawn.T.cov() - spread) / (scale[:, None] * scale)
    assert float(gap.abs().max()) < 4 * (2 / n) ** 0.5


def test_few_images_have_the_covariance_of_a_sample():
    """Divided by N - 1; that of grey images in three channels is singular."""
    process, x0 = cold({"name": "blur"}), images(3, 1).float()
    for seed in range(6):  # the least eigenvalues are rounding, and some negative
        grey = images(3, seed)[:, :1].expand_as(x0).float()
        for given in (x0, grey):
            process.fit(iter([given]))
            factor = process.operator.factor
            exact = given.double().mean((2, 3)).T.cov()
            torch.testing.assert_close(factor @ factor.T, exact, rtol=1e-6, atol=1e-9)


def test_what_is_mixed_in_is_new_at_every_step():
    process, x = cold({"name": "fade"}), images(N, 1)
    q, how = Point(images(N, 2)), {"kernel": "mix", "fresh": 1.0}
    one, two = (
        process.reverse(q, x, number(0.7), number(0.3), rows(N).at(step), **how)
        for step in (1, 2)
    )
    assert bool((one != two).all())


def test_jitter_breaks_the_symmetry():
    still, noisy = (fitted({"name": "blur"}, jitter=std) for std in (0.0, 0.002))
    n, shape = 500, (500, *SPEC.shape)
    noise = noisy.prior(shape, rows(n)) - still.prior(shape, rows(n))
    assert abs(float(noise.std()) / 0.002 - 1) < 4 / (2 * noise.numel()) ** 0.5
    across = noise.flatten(1).T.corrcoef() - torch.eye(SPEC.numel)
    assert float(across.abs().max()) < 5.5 / n**0.5


def test_means_of_one_value_are_fine():
    process = cold({"name": "blur"}, jitter=0.0)
    process.fit(iter([torch.full((7, *SPEC.shape), 0.25)]))
    x = process.prior((4, *SPEC.shape), rows(4))
    torch.testing.assert_close(x, torch.full_like(x, 0.25))


def distances(x, known):
    """From each sample to the nearest that is known."""
    return torch.cdist(x.flatten(1).double(), known.flatten(1).double()).min(1).values


def test_the_priors_of_the_others():
    shape = (50, *SPEC.shape)
    assert not fitted({"name": "mask"}, jitter=0.0).prior(shape, rows(50)).any()
    data = images(20, 1).float()
    for few in (8, 64):  # fewer and more than there are
        grey = cold({"name": "desaturate", "examples": few}, jitter=0.0)
        grey.fit(iter([data[:12], data[12:]]))
        known = grey.corrupt(data[:few], number(1.0), grey.noise(data[:few], rows(few)))
        x = grey.prior(shape, rows(50))
        gaps = distances(x, known)
        assert float(gaps.max()) < 1e-5 and len(x.unique(dim=0)) > 5
    pool = others("others")
    fade = fitted({"name": "fade", "towards": "others", "examples": 16}, jitter=0.0)
    x = fade.prior(shape, rows(50))
    gaps = distances(x, pool)
    assert float(gaps.max()) < 1e-6 and 10 < len(x.unique(dim=0)) <= 16


def test_a_fade_needs_a_place_to_read_from():
    node = {"name": "cold", "operator": {"name": "fade", "towards": "others"}}
    process = processes.build(node, data=SPEC, read=None)
    with pytest.raises(ConfigError, match="towards"):
        process.fit(iter([images().float()]))
    wrong = processes.build(node, data=Spec((3, 8, 8)), read=others)
    with pytest.raises(ConfigError, match="towards"):
        wrong.fit(iter([]))
