"""FID, KID, precision and recall, Inception score: equal to torch-fidelity's own."""

from __future__ import annotations

import math

import pytest
import torch
import torch_fidelity
from measured import Stub
from oracles import rows
from rated import CLASSES, IMAGE, MAP, Linear, build, images
from torch.utils.data import Dataset
from torch_fidelity.feature_extractor_base import FeatureExtractorBase

from diffusion_cli.core import Spec
from diffusion_cli.metrics import seen
from diffusion_cli.metrics.fid import FID
from diffusion_cli.metrics.fidelity import counted
from diffusion_cli.metrics.seen import pixels, stored
from diffusion_cli.networks import networks


class Plain(Linear):
    """The samples themselves."""

    name = "plain"

    def __call__(self, x):
        return x.double()


class Theirs(FeatureExtractorBase):
    """The same map as an extractor of torch-fidelity."""

    @staticmethod
    def get_provided_features_list():
        return "features", "logits"

    @staticmethod
    def get_default_feature_layer_for_metric(metric):
        return "logits" if metric == "isc" else "features"

    @staticmethod
    def can_be_compiled():
        return False

    def __init__(self, name, features_list, **kwargs):
        super().__init__(name, features_list)

    def forward(self, x):
        features = x.double().flatten(1) @ MAP / 255
        both = {"features": features, "logits": features.float().double() @ CLASSES}
        return tuple(both[name].float().double() for name in self.features_list)


class Stored(Dataset):
    def __init__(self, x):
        self.x = pixels(stored(x, IMAGE)).to(torch.uint8)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i]


@pytest.fixture(scope="module")
def theirs():
    """Every number as torch-fidelity's own command computes it."""
    if "linear" not in torch_fidelity.registry.FEATURE_EXTRACTORS_REGISTRY:
        torch_fidelity.register_feature_extractor("linear", Theirs)
    return torch_fidelity.calculate_metrics(
        input1=Stored(images(300, 1, 0.4)),
        input2=Stored(images(400)),
        feature_extractor="linear",
        fid=True,
        kid=True,
        prc=True,
        isc=True,
        kid_subset_size=100,
        cuda=False,
        cache=False,
        save_cpu_ram=True,
        verbose=False,
    )


@pytest.mark.parametrize(
    ("name", "own", "ours", "key"),
    [
        ("fid", {}, "fid", "frechet_inception_distance"),
        ("kid", {"size": 100}, "kid", "kernel_inception_distance_mean"),
        ("precision_recall", {}, "precision", "precision"),
        ("precision_recall", {}, "recall", "recall"),
        ("inception_score", {}, "inception_score", "inception_score_mean"),
    ],
)
def test_the_numbers_of_torch_fidelity_itself(theirs, name, own, ours, key):
    subject = Stub(None, images(400), images(300, 1, 0.4), IMAGE)
    values = build(name, **own)(subject).values
    assert values[f"{ours}_300_linear"] == pytest.approx(theirs[key], abs=1e-6)


def exactly(n, mean, std, seed):
    """n points whose sample moments are these, to the last digits."""
    x = rows(n, seed).normal((n, len(mean)), torch.float64)
    x = x - x.mean(0)
    root = torch.linalg.cholesky(x.T.cov())
    white = torch.linalg.solve_triangular(root, x.T, upper=False).T
    return white * torch.tensor(std).double() + torch.tensor(mean).double()


def test_fid_of_two_normals_is_the_closed_form():
    """Fault K4: |m - m'|^2 + sum (s - s')^2 for diagonal covariances."""
    x = exactly(500, [0.0, 1.0, -2.0, 0.5, 0.0], [1.0, 2.0, 0.5, 0.1, 3.0], 1)
    y = exactly(400, [0.5, 1.0, -1.0, 0.5, 0.2], [1.5, 1.0, 0.5, 0.4, 2.0], 2)
    exact = 0.25 + 1 + 0.04 + 0.25 + 1 + 0 + 0.09 + 1
    assert FID(Plain(), n=500).measure(x, y)["fid"] == pytest.approx(exact, abs=1e-6)


def test_fid_of_a_set_with_itself_is_nothing():
    """Faults K4, K7."""
    x = images(600)
    values = build("fid", n=600)(Stub(None, x, x, IMAGE)).values
    assert abs(values["fid_600_linear"]) < 1e-3
    wide = rows(300, 3).normal((300, 512), torch.float64)  # a singular covariance
    assert abs(FID(Plain(), n=300).measure(wide, wide)["fid"]) < 1e-3


def test_passes_of_one_and_of_64_agree(monkeypatch):
    """Fault K6: a network in float32: only its last bits depend on the batch."""
    spec = Spec((3, 8, 8), classes=4, codec={"levels": 256})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = networks.build(
            {"name": "encoder", "channels": 8, "multipliers": [1, 2]},
            state=spec,
            out=(4,),
        ).eval()
    level = torch.zeros(1)

    class Network(Linear):
        def __call__(self, x):
            self.passes.append(len(x))
            return network.exit(
                network.down[1][0](
                    network.entries[1](network.entries[0](x)),
                    None,
                    network.embedding(level.expand(len(x)), None, None),
                    False,
                )
            )

    found = []
    x, y = (0.5 * rows(200, s).normal((200, 3, 8, 8)).clamp(-1, 1) for s in (1, 2))
    for size in (1, 64):
        monkeypatch.setattr(seen, "PASS", size)
        network_ = Network()
        values = build("fid", network_, n=200)(Stub(None, x, y, spec)).values
        assert max(network_.passes) == size
        found.append(values["fid_200_linear"])
    assert found[0] == pytest.approx(found[1], abs=1e-3) and found[0] > 1e-3


def test_the_protocol_is_in_the_name():
    """Fault K3."""
    assert [counted(n) for n in (500, 1000, 2500, 50_000)] == [
        "500",
        "1k",
        "2500",
        "50k",
    ]
    result = build("fid", n=100)(Stub(None, images(400), images(300, 1), IMAGE))
    assert set(result.values) == {"fid_100_linear", "fid_100_linear_floor"}
    assert "100 samples against 400 data; features: linear-1" in result.notes[0]


def test_numbers_that_must_not_be_compared_have_unequal_protocols():
    """Fault K3."""

    def word(x0=None, key="linear-1", **own):
        data = images(400) if x0 is None else x0
        subject = Stub(None, data, images(300, 1), IMAGE)
        return build("kid", Linear(key), **own)(subject).protocol

    same = word()
    assert same == word() == word(seeds=1)
    others = [word(images(400, 5)), word(key="linear-2"), word(size=50)]
    assert len({same, *others, word(reference=200)}) == 5


def test_the_mean_and_the_spread_over_seeds():
    draws = [images(300, seed) for seed in (1, 2, 3)]
    subject = Stub(None, images(400), draws[0], IMAGE, draws=draws[1:])
    one = [
        build("fid")(Stub(None, images(400), x, IMAGE)).values["fid_300_linear"]
        for x in draws
    ]
    values = build("fid", seeds=3)(subject).values
    mean = sum(one) / 3
    sd = math.sqrt(sum((x - mean) ** 2 for x in one) / 2)
    assert values["fid_300_linear"] == pytest.approx(mean)
    assert values["fid_300_linear_sd"] == pytest.approx(sd) and sd > 0


def test_the_floor_is_held_out_data_or_a_part_of_the_data():
    x, other = images(400), images(300, 4)
    held = build("fid")(Stub(None, x, images(300, 1), IMAGE, other=other))
    assert held.values["fid_300_linear_floor"] == pytest.approx(
        build("fid")(Stub(None, x, other, IMAGE)).values["fid_300_linear"]
    )
    parts = build("fid")(Stub(None, x, images(300, 1), IMAGE))
    exact = build("fid", n=200)(Stub(None, x[200:], x[:200], IMAGE))
    assert parts.values["fid_300_linear_floor"] == pytest.approx(
        exact.values["fid_200_linear"]
    )
