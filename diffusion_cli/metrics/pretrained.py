"""Networks of torchvision."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from diffusion_cli.errors import ConfigError, DataError
from diffusion_cli.metrics import Features, Subject, extractors
from diffusion_cli.metrics.seen import LastLinear, image, pixels
from diffusion_cli.paths import typed
from diffusion_cli.registry import near

CONVERT = (
    'python -c "import sys, torch, safetensors.torch as s; s.save_file(torch.load('
    'sys.argv[1], weights_only=True), sys.argv[2])" WEIGHTS.pth WEIGHTS.safetensors'
)


@extractors("torchvision")
class Torchvision(Features):
    """What the last linear map of a classifier of torchvision reads.

    The whole image is resized (bilinear, antialiased) to what the network was trained
    at, and normalised as its published weights are.

    No reference: each network of torchvision names its own.

    Args:
        model: A name that torchvision knows: resnet50, vit_b_16.
        path: Its weights, safetensors.
    """

    def __init__(self, model: str, path: str) -> None:
        self.name, self.path = model, path

    def load(self, subject: Subject) -> str:
        from torchvision import models

        image(subject.model.spec, "torchvision")
        known = models.list_models(module=models)
        if self.name not in known:
            message = f"features.model: torchvision has no `{self.name}`"
            raise ConfigError(
                f"{message}{near(self.name, known)}", "resnet50, vit_b_16"
            )
        weights = models.get_model_weights(self.name)
        best = getattr(weights, "IMAGENET1K_V1", None) or next(iter(weights))
        preset = best.transforms()
        self.size = preset.crop_size[0]
        self.mean = torch.tensor(preset.mean, device=subject.device)[:, None, None]
        self.std = torch.tensor(preset.std, device=subject.device)[:, None, None]
        network = models.get_model(self.name, weights=None)
        place = typed(self.path, "features.path")
        digest = _fill(network, place)
        self.network = network.to(subject.device).eval().requires_grad_(False)
        self.last = LastLinear(self.network)
        self(torch.zeros(1, *subject.model.spec.shape, device=subject.device))
        return f"{self.name}-{digest}"

    def __call__(self, x: Tensor) -> Tensor:
        sides = (self.size, self.size)
        x = F.interpolate(pixels(x) / 255, sides, mode="bilinear", antialias=True)
        self.network((x - self.mean) / self.std)
        if self.last.read.ndim != 2:
            message = f"features.model: `{self.name}` does not end in a linear map"
            raise ConfigError(message, "features.model=resnet50")
        return self.last.read

    def logits(self, features: Tensor) -> Tensor:
        weight, bias = self.last.map.weight, self.last.map.bias
        return F.linear(features, weight.to(features), bias.to(features))


def _fill(network: torch.nn.Module, place: Path) -> str:
    """Copy the weights into the network; the beginning of the file's hash."""
    if not place.is_file():
        raise DataError(f"features.path: there is no file {place}", CONVERT)
    try:
        network.load_state_dict(load_file(place))
    except SafetensorError as error:
        message = f"{place}: not safetensors: {error}; pickles are not read"
        raise DataError(message, CONVERT) from error
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        message = f"{place}: weights of another network: {reason}"
        raise DataError(message, "features.model=<theirs>") from error
    with place.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:8]
