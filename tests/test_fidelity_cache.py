"""Features are computed once, on images as they would be stored."""

from __future__ import annotations

import pytest
import torch
from measured import Stub
from oracles import rows
from rated import IMAGE, MAP, Linear, build, images

from diffusion_cli.core import Spec
from diffusion_cli.errors import ConfigError, DataError, EnvironmentFault
from diffusion_cli.metrics import seen
from diffusion_cli.metrics.seen import Seen, stored

PLAIN = Spec((5,))
ALL = ("fid", "kid", "precision_recall", "inception_score")


def test_features_are_computed_once(tmp_path, monkeypatch):
    monkeypatch.setattr(seen, "BLOCK", 100)
    subject = Stub(None, images(400), images(400, 1), IMAGE, cache=tmp_path)
    features = Linear()
    whole = build("fid", features)(subject)
    assert sum(features.passes) == 700  # 400 data, 300 samples
    features.passes.clear()
    again = build("fid", features)(subject)
    assert not features.passes and again == whole
    build("fid", features, n=400)(subject)
    assert sum(features.passes) == 100  # the new samples alone
    other = Linear("linear-2")
    build("fid", other)(subject)
    assert sum(other.passes) == 700


def test_a_damaged_file_of_the_cache_is_computed_again(tmp_path):
    subject = Stub(None, images(400), images(300, 1), IMAGE, cache=tmp_path)
    whole = build("fid")(subject)
    for path in tmp_path.rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:50])
    assert build("fid")(subject) == whole


def test_images_are_seen_as_they_would_be_stored():
    x = images(50) + 0.001
    features = Linear()
    subject = Stub(None, x, x, IMAGE)
    expected = ((x.clamp(-1, 1) + 1) * 127.5).round().double().flatten(1) @ MAP / 255
    torch.testing.assert_close(
        Seen(features, subject)([x]), expected, atol=1e-5, rtol=0
    )
    assert torch.equal(stored(stored(x, IMAGE), IMAGE), stored(x, IMAGE))
    points = rows(5).normal((5, 5))
    assert torch.equal(stored(points, PLAIN), points)


@pytest.mark.parametrize("name", ALL)
def test_better_samples_have_better_numbers(name):
    """Data in their own place, then noise of half their size."""
    x = images(800)
    good = build(name)(Stub(None, x[:400], x[400:], IMAGE)).values
    bad = build(name)(Stub(None, x[:400], 0.3 * x[400:], IMAGE)).values
    key = "recall" if name == "precision_recall" else name
    sign = -1 if name in ("precision_recall", "inception_score") else 1
    assert sign * bad[f"{key}_300_linear"] > sign * good[f"{key}_300_linear"]


@pytest.mark.parametrize("name", ALL)
def test_what_cannot_be_measured_is_refused(name, monkeypatch):
    with pytest.raises(DataError, match="needs 4 data"):
        build(name)(Stub(None, images(3), images(300), IMAGE))
    tokens = Stub(None, images(30), images(30), Spec((48,), kind="tokens", vocab=3))
    with pytest.raises(ConfigError, match="real numbers"):
        build(name)(tokens)
    with pytest.raises(ConfigError, match="n: must be"):
        build(name, n=1)
    monkeypatch.setattr("diffusion_cli.metrics.fidelity.import_module", absent)
    with pytest.raises(EnvironmentFault, match="torch-fidelity") as caught:
        build(name)(Stub(None, images(30), images(30), IMAGE))
    assert caught.value.hint == "pip install 'diffusion-cli[fid]'"


def absent(name):
    raise ImportError(name)
