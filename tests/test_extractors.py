"""What samples are compared by: every extractor keeps the contract, also offline."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from conftest import Dcli
from measured import Stub
from oracles import rows
from safetensors.torch import save_file
from tiny import Setup

from diffusion_cli import classifier
from diffusion_cli.core import Spec
from diffusion_cli.datasets import download
from diffusion_cli.errors import ConfigError, DataError, EnvironmentFault
from diffusion_cli.metrics import extractors, inception

SPEC = Spec((1, 8, 8), classes=10, codec={"levels": 17})
JUDGE = {
    "parametrisation": {"name": "classes"},
    "objective": {"name": "classify", "time": {"name": "uniform"}},
    "dataset": {"name": "digits"},
    "network": {"name": "encoder", "channels": 8, "multipliers": [1, 2]},
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Weights that nobody published: of Inception, of a small network."""
    from torch_fidelity import feature_extractor_inceptionv3 as theirs
    from torchvision import models

    folder = tmp_path_factory.mktemp("weights")
    cls = theirs.FeatureExtractorInceptionV3
    with torch.random.fork_rng(), pytest.MonkeyPatch.context() as patch:
        torch.manual_seed(0)
        patch.setattr(theirs, "load_state_dict_from_url", lambda *a, **k: {})
        patch.setattr(cls, "load_state_dict", lambda self, state: None)
        torch.save(cls("x", ["2048"]).state_dict(), folder / "inception.pth")
        small = models.get_model("shufflenet_v2_x0_5", weights=None)
        save_file(small.state_dict(), folder / "small.safetensors")
    return folder


@pytest.fixture
def ready(weights, monkeypatch):
    """An extractor by name, on a subject of 8 x 8 digits."""
    digest = hashlib.sha256((weights / "inception.pth").read_bytes()).hexdigest()
    own = inception.WEIGHTS._replace(hash=digest)
    monkeypatch.setattr(inception, "WEIGHTS", own)
    nodes = {
        "inception": {"path": str(weights / "inception.pth")},
        "torchvision": {
            "model": "shufflenet_v2_x0_5",
            "path": str(weights / "small.safetensors"),
        },
    }

    def make(name):
        with torch.random.fork_rng():
            judge = Setup(parts=JUDGE).state.model.eval()
            torch.nn.init.normal_(judge.network.last.weight)  # it starts at zero
        subject = Stub(None, torch.zeros(4, 1, 8, 8), spec=SPEC, judge=judge)
        features = extractors.build({"name": name} | nodes.get(name, {}))
        return features, features.load(subject)

    return make


@pytest.mark.parametrize("name", extractors.names())
def test_every_extractor_maps_rows_to_rows(name, ready):
    features, key = ready(name)
    assert ready(name)[1] == key and "/" not in key
    x = rows(3).uniform((3, 1, 8, 8)).float() * 2 - 1
    with torch.no_grad():
        whole = features(x)
        logits = features.logits(whole)
        assert whole.ndim == logits.ndim == 2 and len(whole) == len(logits) == 3
        assert (whole[0] != whole[1]).any() and (logits[0] != logits[1]).any()
        for i in range(3):
            alone = features(x[i : i + 1])
            torch.testing.assert_close(alone, whole[i : i + 1], rtol=1e-3, atol=1e-4)
        assert features.logits(whole.double()).dtype == torch.float64


def test_inception_is_that_of_torch_fidelity(ready, weights):
    from torch_fidelity.utils import create_feature_extractor

    features, _ = ready("inception")
    theirs = create_feature_extractor(
        "inception-v3-compat",
        ["2048", "logits_unbiased"],
        cuda=False,
        feature_extractor_weights_path=str(weights / "inception.pth"),
        verbose=False,
    )
    grey = (rows(2).uniform((2, 1, 8, 8)) * 17).long() * 15
    colours = grey.to(torch.uint8).repeat(1, 3, 1, 1)
    own = features(grey.float() / 127.5 - 1)
    pooled, logits = theirs(colours)
    torch.testing.assert_close(own, pooled, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(features.logits(own), logits, rtol=1e-4, atol=1e-5)


def test_without_a_network_it_says_which_file_belongs_where(tmp_path, monkeypatch):
    """Fault K1."""

    def unreachable(*args, **kwargs):
        raise URLError("no route")

    monkeypatch.setattr(download, "urlopen", unreachable)
    monkeypatch.setattr(download, "PATIENCE", 0.0)
    subject = Stub(None, torch.zeros(4, 1, 8, 8), spec=SPEC, cache=tmp_path)
    with pytest.raises(EnvironmentFault) as caught:
        extractors.build({"name": "inception"}).load(subject)
    told = caught.value.hint
    assert caught.value.exit_code == 5 and caught.value.code == "OFFLINE"
    for word in (inception.WEIGHTS.hash, "95,628,359 bytes", str(tmp_path)):
        assert word in told
    assert told.endswith("or features=classifier")


def test_a_file_with_another_hash_is_refused_unread(tmp_path):
    """Fault K2."""
    place = tmp_path / "weights.pth"
    place.write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    subject = Stub(None, torch.zeros(4, 1, 8, 8), spec=SPEC, cache=tmp_path)
    own = extractors.build({"name": "inception", "path": str(place)})
    with pytest.raises(DataError, match="expected 6726825d"):
        own.load(subject)
    cached = tmp_path / inception.WEIGHTS.name
    place.rename(cached)
    with pytest.raises(DataError, match="expected sha256 6726825d"):
        extractors.build({"name": "inception"}).load(subject)
    gone = extractors.build({"name": "inception", "path": str(place)})
    with pytest.raises(DataError, match="there is no file"):
        gone.load(subject)


@pytest.mark.parametrize(
    ("model", "file", "told"),
    [
        ("resnet5O", "small.safetensors", "did you mean `resnet50`"),
        ("shufflenet_v2_x0_5", "none", "there is no file"),
        ("shufflenet_v2_x0_5", "inception.pth", "pickles are not read"),
        ("shufflenet_v2_x1_0", "small.safetensors", "weights of another network"),
    ],
)
def test_mistakes_about_torchvision(model, file, told, weights):
    node = {"name": "torchvision", "model": model, "path": str(weights / file)}
    subject = Stub(None, torch.zeros(4, 1, 8, 8), spec=SPEC)
    with pytest.raises((ConfigError, DataError), match=told):
        extractors.build(node).load(subject)


def test_what_is_no_image_is_refused():
    subject = Stub(None, torch.zeros(4, 2))
    with pytest.raises(ConfigError, match="images in grey or RGB"):
        extractors.build({"name": "inception"}).load(subject)


RUN = (
    "process=edm trainer.steps=2 trainer.batch=8 every.preview=0 trainer.workers=0"
).split()
DIGITS = (*RUN, "dataset=digits", "network=mlp", "network.width=8", "network.depth=1")
POINTS = (*RUN, "dataset=toy2d", "dataset.labels=true", "network.width=8")
POINTS += ("dataset.size=300",)
SCORE = ("features=classifier", "n=20", "steps=2", "cache=cache", "batch=20")


@pytest.fixture
def brief(monkeypatch):
    """A classifier of two steps."""
    monkeypatch.setattr(classifier, "STEPS", 2)


def test_a_classifier_is_trained_once_for_all_runs_on_the_data(
    dcli: Dcli, brief
) -> None:
    assert dcli("train", *DIGITS, "out=one").code == 0
    first = dcli("eval", "ckpt=one", "metric=fid", *SCORE, "json=true")
    assert first.code == 0, first.err
    assert "training a classifier of digits, once" in first.err
    (values,) = json.loads(first.out).values()
    assert set(values) == {"fid_20_classifier", "fid_20_classifier_floor"}
    again = dcli("eval", "ckpt=one", "metric=fid", *SCORE, "json=true")
    assert "training" not in again.err and again.out == first.out
    assert dcli("train", *DIGITS, "out=two", "seed=1").code == 0
    other = dcli("eval", "ckpt=two", "metric=fid", *SCORE)
    assert other.code == 0 and "training" not in other.err
    assert len(list(Path("cache/classifiers").glob("digits-*/step_*"))) == 1
    lines = [
        json.loads(line)
        for path in Path().glob("*/derived/*/metrics.jsonl")
        for line in path.read_text().splitlines()
    ]
    assert len(lines) == 3 and len({line["protocol"] for line in lines}) == 1


def test_points_with_labels_have_a_classifier_too(dcli: Dcli, brief) -> None:
    assert dcli("train", *POINTS, "out=run").code == 0
    outcome = dcli("eval", "ckpt=run", "metric=fid,inception_score", *SCORE)
    assert outcome.code == 0, outcome.err
    assert "inception_score_20_classifier" in outcome.out


def test_data_without_labels_have_none(dcli: Dcli, brief) -> None:
    bare = (*RUN, "dataset=image_folder", "dataset.path=pictures", "network=mlp")
    from PIL import Image

    Path("pictures").mkdir()
    for i in range(4):
        Image.new("L", (8, 8), 50 * i).save(f"pictures/{i}.png")
    assert dcli("train", *bare, "dataset.size=8", "out=run").code == 0
    outcome = dcli("eval", "ckpt=run", "metric=fid", *SCORE)
    assert outcome.code == 2 and "needs labels; the data have none" in outcome.err


def test_a_run_of_ones_own_is_the_classifier(dcli: Dcli, brief) -> None:
    judge = ("parametrisation=classes", "objective=classify", "out=judge")
    assert dcli("train", *DIGITS, *judge).code == 0
    assert dcli("train", *DIGITS, "out=run").code == 0
    words = ("eval", "ckpt=run", "metric=kid", *SCORE)
    outcome = dcli(*words, "features.run=judge")
    assert outcome.code == 0, outcome.err
    assert "training" not in outcome.err and not Path("cache/classifiers").exists()
    refused = dcli(*words, "features.run=run")
    assert refused.code == 2 and "tells x_0, not labels" in refused.err


def test_seeds_are_samples_of_following_seeds(dcli: Dcli, brief) -> None:
    assert dcli("train", *DIGITS, "out=run").code == 0
    words = ("eval", "ckpt=run", "metric=fid", *SCORE, "json=true")
    singles = []
    for seed in (3, 4):
        values = json.loads(dcli(*words, f"seed={seed}").out)["fid"]
        singles.append(values["fid_20_classifier"])
    both = json.loads(dcli(*words, "seed=3", "seeds=2").out)["fid"]
    assert both["fid_20_classifier"] == pytest.approx(sum(singles) / 2)
    assert both["fid_20_classifier_sd"] > 0
    text = dcli(*words[:-1], "seed=3", "seeds=2").out
    assert "(sd over seeds)" in text
