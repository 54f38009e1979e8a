"""The Inception network of the published scores."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor

from diffusion_cli.datasets.download import Remote, fetch
from diffusion_cli.errors import DataError
from diffusion_cli.metrics import Features, Subject, extractors
from diffusion_cli.metrics.fidelity import library
from diffusion_cli.metrics.seen import image, pixels
from diffusion_cli.paths import typed

WEIGHTS = Remote(
    "weights-inception-2015-12-05-6726825d.pth",
    (
        "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
        "weights-inception-2015-12-05-6726825d.pth",
    ),
    "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    kind="sha256",
    size=95_628_359,
)


@extractors("inception")
class Inception(Features):
    """The TensorFlow-compatible Inception-v3 of torch-fidelity: its last pooling.

    2048 features of the image at 299 x 299 (bilinear, as TensorFlow 1 does it); grey
    is three equal colours. The weights, 96 MB, are fetched once into the cache.

    Reference: Szegedy et al. 2016, arXiv:1512.00567; Obukhov et al. 2020,
        "High-fidelity performance metrics for generative models in PyTorch".

    Args:
        path: The file of the weights, if it lies elsewhere; its hash must be the same.
    """

    name = "inception"

    def __init__(self, path: str | None = None) -> None:
        self.path = path

    def load(self, subject: Subject) -> str:
        image(subject.model.spec, self.name)
        library("feature_extractor_inceptionv3")
        place = self._file(subject)
        from torch_fidelity.feature_extractor_inceptionv3 import (
            FeatureExtractorInceptionV3,
        )

        # its pickle is read by the library, after the hash of the file is known
        self.network = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(place)
        ).to(subject.device)
        return f"inception-{WEIGHTS.hash[:8]}"

    def __call__(self, x: Tensor) -> Tensor:
        (features,) = self.network(pixels(x).to(torch.uint8))
        return features  # type: ignore[no-any-return]

    def logits(self, features: Tensor) -> Tensor:
        """Without the bias, as the published Inception scores have them."""
        weight = self.network.fc.weight.to(features)
        return features @ weight.T  # type: ignore[no-any-return]

    def _file(self, subject: Subject) -> Path:
        if self.path is None:
            folder = subject.cache or Path.cwd()
            return fetch(
                WEIGHTS, folder, "features", "cache=...", "features=classifier"
            )
        place = typed(self.path, "features.path")
        hint = f"the file {WEIGHTS.name}, or leave features.path out"
        if not place.is_file():
            raise DataError(f"features.path: there is no file {place}", hint)
        with place.open("rb") as file:
            found = hashlib.file_digest(file, WEIGHTS.kind).hexdigest()
        if found != WEIGHTS.hash:
            what = f"{place}: {WEIGHTS.kind} {found}, expected {WEIGHTS.hash}"
            raise DataError(what, hint, "DATA-HASH")
        return place
