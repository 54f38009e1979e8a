"""Laws of degradations over the registry (T7.5)."""

import math
from itertools import pairwise

import pytest
import torch
from degraded import VARIANTS, N, cold, fitted, images
from oracles import number, rows

from diffusion_cli.core import Spec
from diffusion_cli.errors import ConfigError
from diffusion_cli.processes.degradation import operators

TIMES = [0.02, 0.1, 0.3, 0.5, 0.77, 0.98]


def test_every_operator_is_tested():
    assert {variant["name"] for variant in VARIANTS} == set(operators.names())


@pytest.mark.parametrize("operator", VARIANTS, ids=str)
def test_nothing_happens_at_0(operator):
    process, x0 = fitted(operator), images().float()
    noise = process.noise(x0, rows(N))
    for t in (number(0.0), torch.zeros(N, dtype=torch.float64)):
        assert torch.equal(process.corrupt(x0, t, noise), x0)


@pytest.mark.parametrize("operator", VARIANTS, ids=str)
def test_severity_is_monotone_and_samples_keep_their_own_times(operator):
    process, x0 = fitted(operator), images()
    noise = process.noise(x0, rows(N))
    last = torch.zeros(N, dtype=torch.float64)
    for t in torch.linspace(0, 1, 41, dtype=torch.float64)[1:]:
        x = process.corrupt(x0, t, noise)
        gone = (x - x0).flatten(1).square().sum(1)
        assert x.isfinite().all() and bool((gone >= last - 1e-12).all())
        last = gone
    assert bool((last > 0.1).all())
    t = torch.tensor([0.0, 0.2, 0.5, 0.9, 1.0], dtype=torch.float64)
    mixed = process.corrupt(x0, t, noise)
    for i in range(N):
        alone = process.corrupt(x0[i : i + 1], t[i], noise[i : i + 1])
        torch.testing.assert_close(mixed[i : i + 1], alone, rtol=1e-9, atol=1e-12)


def test_what_is_gone_at_s_is_gone_at_t():
    """D(x, t) is a function of D(x, s) for s < t: information only falls."""
    x0 = images()
    blur, pixelate, mask = (cold({"name": n}) for n in ("blur", "pixelate", "mask"))
    none = blur.noise(x0, rows(N))
    s, t = number(0.5), number(0.7)
    rest = ((t / (1 - t)) ** 2 - (s / (1 - s)) ** 2).sqrt()  # variances add up
    part = blur.corrupt(x0, s, none)
    again = blur.corrupt(part, rest / (1 + rest), none)
    torch.testing.assert_close(again, blur.corrupt(x0, t, none), rtol=0, atol=1e-12)
    stages = len(pixelate.operator.rows) - 1
    part = pixelate.corrupt(x0, number(1 / stages), none)
    for t in (1 / stages, 0.7, 0.9, 1.0):
        again = pixelate.corrupt(part, number(t), none)
        whole = pixelate.corrupt(x0, number(t), none)
        torch.testing.assert_close(again, whole, rtol=0, atol=1e-12)
    ones, noise = torch.ones_like(x0), mask.noise(x0, rows(N))
    kept = [mask.corrupt(ones, number(t), noise) for t in TIMES]
    assert all(bool((late <= early).all()) for early, late in pairwise(kept))


@pytest.mark.parametrize("name", ["blur", "pixelate"])
@pytest.mark.parametrize(
    "shape", [(1, 8, 8), (3, 6, 4), (1, 7, 5), (1, 28, 28), (1, 8, 2), (1, 2, 8)]
)
def test_the_end_of_averaging_is_the_mean_of_each_channel(name, shape):
    process, x0 = cold({"name": name}, Spec(shape)), images(N, 0, shape)
    noise = process.noise(x0, rows(N))
    means = x0.mean((2, 3), keepdim=True)
    end = process.corrupt(x0, number(1.0), noise)
    torch.testing.assert_close(end, means.expand_as(x0), rtol=0, atol=1e-12)
    for t in TIMES:  # and the mean is kept on the way there
        x = process.corrupt(x0, number(t), noise)
        torch.testing.assert_close(x.mean((2, 3), keepdim=True), means)


def test_blur_is_a_gaussian_kernel_with_mirrored_edges():
    process = cold({"name": "blur", "width": 0.125}, Spec((1, 32, 32)))
    point = torch.zeros(1, 1, 32, 32).double()
    point[0, 0, 16, 12] = 1
    x = process.corrupt(point, number(0.4), process.noise(point, rows(1)))[0, 0]
    std = 0.125 * 32 * 0.4 / 0.6
    offset = torch.arange(32, dtype=torch.float64)
    row = (-((offset - 16) ** 2) / (2 * std**2)).exp()
    column = (-((offset - 12) ** 2) / (2 * std**2)).exp()
    kernel = row[:, None] * column / (row.sum() * column.sum())
    torch.testing.assert_close(x, kernel, rtol=0, atol=1e-5)


def test_pixelate_averages_growing_blocks():
    process, x0 = cold({"name": "pixelate"}, Spec((1, 8, 8))), images(2, 0, (1, 8, 8))
    noise = process.noise(x0, rows(2))
    for stage, block in enumerate((1, 2, 4, 8)):
        x = process.corrupt(x0, number(stage / 3), noise)
        small = torch.nn.functional.avg_pool2d(x0, block)
        large = small.repeat_interleave(block, 2).repeat_interleave(block, 3)
        torch.testing.assert_close(x, large)


def test_a_mask_grows_from_its_centre():
    process = cold({"name": "mask", "centre": "random"}, Spec((1, 16, 16)))
    ones = torch.ones(200, 1, 16, 16).double()
    noise = process.noise(ones, rows(200))
    x = process.corrupt(ones, number(0.2), noise)
    darkest = x.flatten(1).argmin(1)
    place = torch.stack((darkest // 16, darkest % 16), 1)
    expected = (noise * 16).floor()
    assert torch.equal(place.double(), expected.double())
    assert len(place.unique(dim=0)) > 100  # everywhere
    fixed = cold({"name": "mask"}, Spec((1, 16, 16)))
    middle = fixed.corrupt(ones[:1], number(0.2), fixed.noise(ones[:1], rows(1)))[0, 0]
    assert float(middle[7, 7]) == pytest.approx(float(middle[8, 8]))
    assert float(middle[7, 7]) == float(middle.min())
    assert not fixed.corrupt(ones, number(1.0), fixed.noise(ones, rows(200))).any()


def test_a_mask_has_the_depth_that_its_formula_says():
    """(1 - exp(-d^2 / (2 std^2)))^holes, std a part of the longer side."""
    process = cold({"name": "mask", "width": 0.2, "holes": 3}, Spec((1, 6, 4)))
    ones = torch.ones(1, 1, 6, 4).double()
    x = process.corrupt(ones, number(0.4), process.noise(ones, rows(1)))[0, 0]
    std = 0.2 * 6 * 0.4 / 0.6
    for i, j in ((0, 0), (2, 3), (5, 1)):
        square = (i + 0.5 - 3) ** 2 + (j + 0.5 - 2) ** 2
        expected = (1 - math.exp(-square / (2 * std**2))) ** 3
        assert float(x[i, j]) == pytest.approx(expected)


def test_a_blur_is_as_wide_as_the_longer_side_says():
    """A cosine along the shorter one is damped by exp(-(std w)^2 / 2)."""
    process = cold({"name": "blur", "width": 0.1}, Spec((1, 8, 4)))
    wave = torch.cos(math.pi / 4 * (torch.arange(4).double() + 0.5)).expand(1, 1, 8, 4)
    x = process.corrupt(wave, number(0.5), process.noise(wave, rows(1)))
    damped = math.exp(-((0.1 * 8 * math.pi / 4) ** 2) / 2)
    torch.testing.assert_close(x, damped * wave)


def test_desaturate_ends_in_grey():
    process, x0 = cold({"name": "desaturate"}), images()
    grey = process.corrupt(x0, number(1.0), process.noise(x0, rows(N)))
    luma = torch.tensor([0.299, 0.587, 0.114]).double()  # ITU-R BT.601
    expected = torch.einsum("c,bchw->bhw", luma, x0)
    for channel in range(3):
        torch.testing.assert_close(grey[:, channel], expected)


@pytest.mark.parametrize("name", ["blur", "pixelate", "mask", "desaturate"])
def test_degradations_of_images_refuse_what_is_none(name):
    with pytest.raises(ConfigError) as caught:
        cold({"name": name}, Spec((2,)))
    assert "hint:" in caught.value.render()
    assert f"`{name}`" in caught.value.message and "(2)" in caught.value.message


def test_desaturate_refuses_grey_images():
    with pytest.raises(ConfigError, match="three channels") as caught:
        cold({"name": "desaturate"}, Spec((1, 8, 8)))
    assert "dataset=" in caught.value.hint
