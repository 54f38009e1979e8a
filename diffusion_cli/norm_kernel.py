"""silu(group_norm(x)) on a GPU: one kernel forward, one backward.

A program has some groups of one image. It reads them twice, first for what it sums and
then for what it writes; nothing in between is stored. Sums are float32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 4096  # numbers at a time
WIDEST, NARROWEST = 64, 16  # channels of a program: 128 and 32 bytes side by side
PROGRAMS = 512  # that fill a device; where there are fewer, each has fewer channels


@triton.jit  # type: ignore[untyped-decorator]
def _columns(
    groups: tl.tensor, PER: tl.constexpr, PADDED: tl.constexpr, WIDE: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Group and channel of every column of this program, and whether it has one."""
    column = tl.arange(0, WIDE)
    group = tl.program_id(1) * (WIDE // PADDED) + column // PADDED
    held = (column % PADDED < PER) & (group < groups)
    return group, group * PER + column % PADDED, held


@triton.jit  # type: ignore[untyped-decorator]
def _tile(
    start: tl.tensor,
    pixels: tl.tensor,
    channel: tl.tensor,
    held: tl.tensor,
    of_channel: tl.tensor,
    of_pixel: tl.tensor,
    TALL: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Where the numbers of the next pixels lie in an image, and which there are."""
    pixel = start + tl.arange(0, TALL)
    place = pixel[:, None] * of_pixel + channel[None, :] * of_channel
    return place, (pixel < pixels)[:, None] & held[None, :]


@triton.jit  # type: ignore[untyped-decorator]
def _of_group(values: tl.tensor, PADDED: tl.constexpr) -> tl.tensor:
    """For every channel the sum over its group."""
    wide: tl.constexpr = values.shape[0]
    table = tl.reshape(values, (wide // PADDED, PADDED))
    total = tl.sum(table, axis=1)[:, None]
    return tl.reshape(tl.broadcast_to(total, (wide // PADDED, PADDED)), (wide,))


@triton.jit  # type: ignore[untyped-decorator]
def _slope(
    x: tl.tensor,
    into: tl.tensor,
    mean: tl.tensor,
    rstd: tl.tensor,
    gamma: tl.tensor,
    beta: tl.tensor,
) -> tuple[tl.tensor, tl.tensor]:
    """The slope of the norm's output z, and (x - mean) / std."""
    normal = (x - mean) * rstd
    z = normal * gamma + beta
    part = 1 / (1 + tl.exp(-z))
    return into * part * (1 + z * (1 - part)), normal


@triton.jit  # type: ignore[untyped-decorator]
def _forward(
    x: tl.tensor,
    out: tl.tensor,
    means: tl.tensor,
    rstds: tl.tensor,
    gammas: tl.tensor,
    betas: tl.tensor,
    groups: tl.tensor,
    pixels: tl.tensor,
    of_image: tl.tensor,
    of_channel: tl.tensor,
    of_pixel: tl.tensor,
    eps: tl.tensor,
    PER: tl.constexpr,
    PADDED: tl.constexpr,
    WIDE: tl.constexpr,
    TALL: tl.constexpr,
) -> None:
    image = tl.program_id(0).to(tl.int64)
    group, channel, held = _columns(groups, PER, PADDED, WIDE)
    x += image * of_image
    out += image * of_image
    # Less the first number of the group, squares lose no digits to a large mean.
    first = tl.load(x + group * PER * of_channel, mask=held, other=0).to(tl.float32)
    total = tl.zeros((WIDE,), tl.float32)
    squares = tl.zeros((WIDE,), tl.float32)
    for start in range(0, pixels, TALL):
        place, there = _tile(start, pixels, channel, held, of_channel, of_pixel, TALL)
        read = tl.load(x + place, mask=there, other=0).to(tl.float32)
        read = tl.where(there, read - first[None, :], 0)
        total += tl.sum(read, axis=0)
        squares += tl.sum(read * read, axis=0)
    count = PER * pixels
    shift = _of_group(total, PADDED) / count
    variance = _of_group(squares, PADDED) / count - shift * shift
    rstd = 1 / tl.sqrt(tl.maximum(variance, 0) + eps)
    mean = first + shift
    once = held & (channel == group * PER)
    tl.store(means + image * groups + group, mean, mask=once)
    tl.store(rstds + image * groups + group, rstd, mask=once)
    scale = rstd * tl.load(gammas + channel, mask=held, other=0).to(tl.float32)
    beta = tl.load(betas + channel, mask=held, other=0).to(tl.float32)
    for start in range(0, pixels, TALL):
        place, there = _tile(start, pixels, channel, held, of_channel, of_pixel, TALL)
        read = tl.load(x + place, mask=there, other=0).to(tl.float32)
        z = (read - mean[None, :]) * scale[None, :] + beta[None, :]
        made = z / (1 + tl.exp(-z))
        tl.store(out + place, made.to(out.dtype.element_ty), mask=there)


@triton.jit  # type: ignore[untyped-decorator]
def _backward(
    x: tl.tensor,
    into: tl.tensor,
    out: tl.tensor,
    of_gamma: tl.tensor,
    of_beta: tl.tensor,
    means: tl.tensor,
    rstds: tl.tensor,
    gammas: tl.tensor,
    betas: tl.tensor,
    groups: tl.tensor,
    pixels: tl.tensor,
    of_image: tl.tensor,
    of_channel: tl.tensor,
    of_pixel: tl.tensor,
    PER: tl.constexpr,
    PADDED: tl.constexpr,
    WIDE: tl.constexpr,
    TALL: tl.constexpr,
) -> None:
    image = tl.program_id(0).to(tl.int64)
    group, channel, held = _columns(groups, PER, PADDED, WIDE)
    x += image * of_image
    into += image * of_image
    out += image * of_image
    mean = tl.load(means + image * groups + group, mask=held, other=0)[None, :]
    rstd = tl.load(rstds + image * groups + group, mask=held, other=0)[None, :]
    gamma = tl.load(gammas + channel, mask=held, other=0).to(tl.float32)
    beta = tl.load(betas + channel, mask=held, other=0).to(tl.float32)[None, :]
    plain = tl.zeros((WIDE,), tl.float32)
    along = tl.zeros((WIDE,), tl.float32)
    for start in range(0, pixels, TALL):
        place, there = _tile(start, pixels, channel, held, of_channel, of_pixel, TALL)
        read = tl.load(x + place, mask=there, other=0).to(tl.float32)
        given = tl.load(into + place, mask=there, other=0).to(tl.float32)
        slope, normal = _slope(read, given, mean, rstd, gamma[None, :], beta)
        plain += tl.sum(slope, axis=0)
        along += tl.sum(slope * normal, axis=0)
    channels = groups * PER
    tl.store(of_beta + image * channels + channel, plain, mask=held)
    tl.store(of_gamma + image * channels + channel, along, mask=held)
    count = PER * pixels
    level = (_of_group(plain * gamma, PADDED) / count)[None, :]
    tilt = (_of_group(along * gamma, PADDED) / count)[None, :]
    for start in range(0, pixels, TALL):
        place, there = _tile(start, pixels, channel, held, of_channel, of_pixel, TALL)
        read = tl.load(x + place, mask=there, other=0).to(tl.float32)
        given = tl.load(into + place, mask=there, other=0).to(tl.float32)
        slope, normal = _slope(read, given, mean, rstd, gamma[None, :], beta)
        made = rstd * (slope * gamma[None, :] - level - normal * tilt)
        tl.store(out + place, made.to(out.dtype.element_ty), mask=there)


def tiles(x: Tensor, groups: int) -> tuple[tuple[int, int], dict[str, int]]:
    """Programs, and what each of them holds."""
    images, channels = x.shape[:2]
    pixels = x[0, 0].numel()
    per = channels // groups
    padded = triton.next_power_of_2(per)
    wide = max(padded, min(WIDEST, padded * triton.next_power_of_2(groups)))
    while wide > max(padded, NARROWEST) and (
        images * triton.cdiv(groups, wide // padded) < PROGRAMS
    ):
        wide //= 2
    tall = max(1, min(TILE // wide, triton.next_power_of_2(pixels)))
    grid = (images, triton.cdiv(groups, wide // padded))
    warps = 8 if wide * tall >= TILE else 4
    held = {"PER": per, "PADDED": padded, "WIDE": wide, "TALL": tall}
    return grid, held | {"num_warps": warps}


def steps(x: Tensor) -> tuple[int, int, int]:
    """From an image, a channel and a pixel to the next; all of x has to be dense."""
    pixels = x[0, 0].numel()
    if x.is_contiguous():
        return x.shape[1] * pixels, pixels, 1
    return x.shape[1] * pixels, 1, x.shape[1]  # channels last


def dense(x: Tensor) -> Tensor:
    """x as it is, or a copy, where neither its channels nor its pixels lie together."""
    last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return x if last else x.contiguous()


def forward(
    x: Tensor, gamma: Tensor, beta: Tensor, groups: int, eps: float, kind: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """silu(group_norm(x)) in a precision, mean and 1 / std of (B, groups).

    Args:
        x: (B, C, ...), dense.
    """
    gamma, beta = gamma.contiguous(), beta.contiguous()
    out = torch.empty_like(x, dtype=kind)
    mean, rstd = (
        torch.empty(len(x), groups, dtype=torch.float32, device=x.device)
        for _ in range(2)
    )
    if x.numel():
        grid, held = tiles(x, groups)
        sizes = (groups, x[0, 0].numel(), *steps(x))
        # Triton launches on the current device
        with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
            _forward[grid](x, out, mean, rstd, gamma, beta, *sizes, eps, **held)
    return out, mean, rstd


def backward(
    x: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, rstd: Tensor, into: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, gamma and beta from the one of the output."""
    gamma, beta = gamma.contiguous(), beta.contiguous()
    last = not x.is_contiguous()
    layout = torch.channels_last if last else torch.contiguous_format
    into = into.contiguous(memory_format=layout)
    out = torch.empty_like(x)
    of_gamma, of_beta = (
        torch.empty(x.shape[:2], dtype=torch.float32, device=x.device) for _ in range(2)
    )
    groups = mean.shape[1]
    if x.numel():
        grid, held = tiles(x, groups)
        sizes = (groups, x[0, 0].numel(), *steps(x))
        with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
            _backward[grid](
                x, into, out, of_gamma, of_beta, mean, rstd, gamma, beta, *sizes, **held
            )
    return out, of_gamma.sum(0).to(gamma.dtype), of_beta.sum(0).to(beta.dtype)
