"""The data that samples are closest to."""

from __future__ import annotations

import io

import torch
from PIL import Image
from torch import Tensor

from diffusion_cli.metrics import Metric, Result, Subject, metrics
from diffusion_cli.metrics.seen import stored
from diffusion_cli.metrics.summaries import continuous
from diffusion_cli.settings import require

COPIED = 1 / 3  # of the distance to the second nearest datum
CANDIDATES = 16  # nearest data whose distances are taken exactly
COLUMNS, ROWS = 8, 4  # pairs in the picture


@metrics("nearest")
class Nearest(Metric):
    """How far samples are from the closest data, and how many of them are copies.

    distance = min over data y of |x - y| / sqrt(d)

    A sample is a copy if its nearest datum is three times as close as the second
    nearest. Beside it stand the same numbers of held-out data, if there are any: a
    model that generalises reaches them. The picture shows samples above their nearest
    data, closest first.

    Reference: Yoon et al. 2023, "Diffusion probabilistic models generalize when they
        fail to memorize" (the ratio); Carlini et al. 2023, arXiv:2301.13188.

    Args:
        n: Number of samples.
    """

    def __init__(self, n: int = 1000) -> None:
        require(n >= 2, "n", n, ">= 2")
        self.n = n

    def __call__(self, subject: Subject) -> Result:
        spec = subject.model.spec
        continuous(spec, "nearest")
        x = stored(subject.samples(self.n), spec)
        found = Found(x, subject)
        values = found.values("")
        notes = [f"{len(x)} samples against {found.seen} data, pixel by pixel"]
        other = subject.held_out(self.n)
        if other is not None:
            held = torch.cat([stored(x0, spec) for x0, _, _ in other])
            values |= Found(held, subject).values("_floor")
            notes.append(f"floor: {len(held)} data of the other split in their place")
        files = {} if spec.points else {"nearest.png": self.picture(found, subject)}
        return Result(values, notes=tuple(notes), files=files)

    def picture(self, found: Found, subject: Subject) -> bytes:
        """Rows of samples above rows of their nearest data."""
        first = found.distances[:, 0].argsort()[: COLUMNS * ROWS]
        x, y = found.x[first], found.nearest[first]
        whole = len(first) // COLUMNS * COLUMNS or len(first)
        width = min(COLUMNS, whole)
        pairs = torch.stack([part[:whole] for part in (x, y)])
        pairs = pairs.reshape(2, -1, width, *x.shape[1:])
        tiles = pairs.transpose(0, 1).flatten(0, 2)  # a row, then its neighbours
        return png(sheet(tiles, width, subject))


class Found:
    """The two nearest data of every sample.

    Args:
        x: Samples, (n, ...).
        subject: Whose data.
    """

    def __init__(self, x: Tensor, subject: Subject) -> None:
        self.x, device = x, subject.device
        flat = x.flatten(1).to(device)
        self.distances = torch.full((len(x), 2), torch.inf, device=device)
        self.nearest = torch.zeros_like(x).to(device)
        self.seen = 0
        for x0, _, _ in subject.data(None):
            data = stored(x0, subject.model.spec).to(device)
            gaps, which = _closest(flat, data.flatten(1))
            closer = gaps[:, 0] < self.distances[:, 0]
            self.nearest[closer] = data[which[closer, 0]]
            both = torch.cat([self.distances, gaps], 1)
            self.distances = both.topk(2, largest=False).values
            self.seen += len(data)
        self.distances = self.distances.cpu() / flat.shape[1] ** 0.5
        self.nearest = self.nearest.cpu()

    def values(self, tail: str) -> dict[str, float]:
        """What is told of them."""
        near, second = self.distances.double().unbind(1)
        copied = (near < COPIED * second).double()
        return {
            f"distance{tail}": float(near.mean()),
            f"closest{tail}": float(near.min()),
            f"copies{tail}": float(copied.mean()),
        }


def _closest(x: Tensor, data: Tensor) -> tuple[Tensor, Tensor]:
    """Distances to the two nearest data, and their indices: (n, 2) each.

    A product of matrices is the fast way to find them; it cancels where points are
    close, so the distances of the best few are taken again, coordinate by coordinate.
    """
    few = torch.cdist(x, data).topk(min(CANDIDATES, len(data)), largest=False).indices
    gaps = torch.stack([(x - data[i]).norm(dim=1) for i in few.unbind(1)], 1)
    two = gaps.topk(min(2, len(data)), largest=False)
    return two.values, few.gather(1, two.indices)


def sheet(tiles: Tensor, width: int, subject: Subject) -> Tensor:
    """Images in rows of `width` as one picture, (3, H, W)."""
    rows = [
        torch.cat([subject.kind.picture(x[None], subject.model.spec) for x in row], 2)
        for row in tiles.split(width)  # type: ignore[no-untyped-call]
    ]
    return torch.cat(rows, 1)


def png(picture: Tensor) -> bytes:
    """A picture (3, H, W) uint8 as a file."""
    buffer = io.BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy()).save(buffer, "PNG")
    return buffer.getvalue()
