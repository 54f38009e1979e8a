"""Ways from one draw of a prior to another that stay where draws lie."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def slerp(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    """The arc from a to b, for isotropic laws: it turns evenly and scales evenly.

    x = |a|^(1 - w) |b|^w (sin((1 - w) h) u + sin(w h) v) / sin h,
    u = a / |a|,  v = b / |b|,  cos h = u . v,  w = share

    Between independent directions of uniform law lies one of uniform law; on a straight
    line norms would shrink to |a + b| / 2, where a network has never been.

    Reference: Shoemake 1985, "Animating rotation with quaternion curves"; White 2016,
        section 2, arXiv:1609.04468.

    Args:
        a: (B, ...).
        b: The same.
        share: How far from a to b, 0 to 1; (B,).
    """
    w, flat = share.double()[:, None], (a.double().flatten(1), b.double().flatten(1))
    norms = [x.norm(dim=1, keepdim=True).clamp(min=1e-300) for x in flat]
    u, v = (x / norm for x, norm in zip(flat, norms, strict=True))
    # stable for near and for opposite directions
    angle = 2 * torch.atan2((u - v).norm(dim=1), (u + v).norm(dim=1))[:, None]
    sine = angle.sin()
    straight = sine < 1e-9  # no arc, or no single one
    sine = sine.masked_fill(straight, 1.0)
    first = torch.where(straight, 1 - w, ((1 - w) * angle).sin() / sine)
    second = torch.where(straight, w, (w * angle).sin() / sine)
    size = norms[0] ** (1 - w) * norms[1] ** w
    x: Tensor = size * (first * u + second * v)
    return x.view_as(a).to(a.dtype)


def circle(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    """From a to b, for normal laws of mean 0 and any covariance; (B, ...).

    x = cos(pi w / 2) a + sin(pi w / 2) b,   w = share

    Squares of the factors sum to 1: between independent draws lies one of the same law.
    """
    angle = (share.double() * math.pi / 2).reshape(-1, *[1] * (a.ndim - 1))
    return (angle.cos() * a.double() + angle.sin() * b.double()).to(a.dtype)
