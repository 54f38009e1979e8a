"""Samples as features, computed once for each block of them. Registers nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from diffusion_cli.core import Spec
from diffusion_cli.datasets.storage import staged, writing
from diffusion_cli.errors import ConfigError
from diffusion_cli.metrics import Features, Subject
from diffusion_cli.metrics.summaries import spacing

BLOCK = 512  # samples in a file of the cache
PASS = 64  # samples in a pass through the extractor


class Seen:
    """Sets of samples as their features, kept in the subject's cache.

    A file is named by a hash of its samples as they would be stored and lies in a
    folder named by the extractor, so that nothing stale is read, a killed command
    continues, and a larger set computes only what is new.

    Args:
        features: The extractor.
        subject: Whose samples and data.
    """

    def __init__(self, features: Features, subject: Subject) -> None:
        self.features, self.subject = features, subject
        self.spec = subject.model.spec
        self.key = features.load(subject)
        self.digest = ""  # of the samples last seen

    def __call__(self, batches: Iterable[Tensor], total: int | None = None) -> Tensor:
        """Their features, (n, d) float64 on the CPU; processes share the blocks."""
        digests: list[str] = []
        world = self.subject.world
        with tqdm(
            desc=self.features.name,
            total=total,
            unit="sample",
            disable=None,  # silent where stderr is no terminal
            leave=False,
        ) as bar:

            def told() -> Iterator[tuple[Tensor, str]]:  # by all of all, as it is cheap
                for block in _blocks(batches):
                    x = stored(block, self.spec)
                    digests.append(_digest(x))
                    yield x, digests[-1]
                    bar.update(len(x))

            found = [self._block(x, digest) for x, digest in world.share(told())]
        self.digest = hashlib.sha256("".join(digests).encode()).hexdigest()[:16]
        return world.pool(found, BLOCK)

    @torch.no_grad()
    def _block(self, x: Tensor, digest: str) -> Tensor:
        cache = self.subject.cache
        path = cache and cache / "features" / self.key / f"{digest}.safetensors"
        if path and path.exists():
            try:
                return load_file(path)["features"]
            except (SafetensorError, KeyError):
                path.unlink()  # damaged: computed again
        starts, here = range(0, len(x), PASS), self.subject.device
        parts = [self.features(x[i : i + PASS].to(here)) for i in starts]
        values = torch.cat(parts).float().cpu().contiguous()
        if path:
            with writing(path.parent, "cache=<a writable folder>"), staged(path) as to:
                save_file({"features": values}, to)
        return values


def stored(x: Tensor, spec: Spec) -> Tensor:
    """Images at the nearest of their levels, still in [-1, 1]; other samples as is."""
    width, x = spacing(spec), x.detach().float().cpu()
    if width is None:
        return x
    return ((x.clamp(-1, 1) + 1) / width).round() * width - 1


def pixels(x: Tensor) -> Tensor:
    """Images (B, C, H, W) in [-1, 1] as three colours from 0 to 255, whole numbers."""
    x = ((x + 1) * 127.5).round()
    return x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x


def image(spec: Spec, where: str) -> None:
    """Refuse what is no image in grey or in three colours."""
    if len(spec.shape) != 3 or spec.shape[0] not in (1, 3):
        message = f"features: `{where}` is for images in grey or RGB"
        raise ConfigError(
            f"{message}, the data are {spec.shape}",
            "w2, sliced_w2 or mmd compare points"
            if spec.points
            else "features=classifier",
        )


class LastLinear:
    """What the last linear map of a network read, and that map, after every pass.

    Args:
        network: Watched from now on.
    """

    def __init__(self, network: nn.Module) -> None:
        self.read = torch.empty(0)
        self.map: Any = None  # nn.Linear
        for part in network.modules():
            if isinstance(part, nn.Linear):
                part.register_forward_pre_hook(self._note)

    def _note(self, part: Any, inputs: tuple[Tensor, ...]) -> None:
        self.map, self.read = part, inputs[0]


def _blocks(batches: Iterable[Tensor]) -> Iterator[Tensor]:
    """The same samples in blocks of `BLOCK`; the last one may be shorter."""
    held: list[Tensor] = []
    for x in batches:
        held.append(x.cpu())
        while sum(map(len, held)) >= BLOCK:
            whole = torch.cat(held)
            yield whole[:BLOCK]
            held = [whole[BLOCK:]]
    if sum(map(len, held)):
        yield torch.cat(held)


def _digest(x: Tensor) -> str:
    return hashlib.sha256(x.contiguous().numpy().tobytes()).hexdigest()[:32]
