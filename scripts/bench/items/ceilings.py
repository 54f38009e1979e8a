"""What the device can do at best: the peaks that shares are told of."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from chip import Bench, Once, Row, best
from torch import nn

CONVOLUTIONS = ((128, 32), (256, 16))  # channels and pixels: most of the U-Net's work


def measure(bench: Bench) -> Iterator[Row]:
    """Copying, multiplying and convolving, at sizes that fill the device."""
    yield {"side": "copy, bytes read and written", "TB/s": copying(bench)}
    size = matrix(bench)
    name = f"bf16 product of {size} x {size} matrices"
    yield {"side": name, "TFLOP/s": multiplying(bench)}
    for channels, pixels in CONVOLUTIONS:
        for backward in (False, True):
            way = "forward and backward" if backward else "forward"
            yield {
                "side": f"bf16 convolution 3x3, {channels} at {pixels} pixels, {way}",
                "TFLOP/s": convolving(bench, channels, pixels, backward),
            }


def copying(bench: Bench) -> float:
    """TB/s between two places in memory that no cache holds."""
    numbers = 2**24 if bench.small else 2**30
    source = torch.empty(numbers, device=bench.device).normal_()
    target = torch.empty_like(source)
    took = best(bench.device, lambda: target.copy_(source), times=5)
    return 2 * source.nbytes / took / 1e12


def matrix(bench: Bench) -> int:
    """The size of the matrices."""
    return 1024 if bench.small else 8192


def multiplying(bench: Bench) -> float:
    """TFLOP/s of bf16 products of random matrices; zeros would be faster."""
    size = matrix(bench)
    a, b = (
        torch.randn(size, size, device=bench.device, dtype=torch.bfloat16)
        for _ in range(2)
    )
    out = torch.empty_like(a)
    took = best(bench.device, lambda: torch.mm(a, b, out=out), times=10)
    return 2 * size**3 / took / 1e12


def convolving(bench: Bench, channels: int, pixels: int, backward: bool) -> float:
    """TFLOP/s of a bf16 convolution, channels last; backward does twice as much."""
    torch.backends.cudnn.benchmark = True
    batch = 2 if bench.small else 512
    kind = {"device": bench.device, "dtype": torch.bfloat16}
    layer = nn.Conv2d(channels, channels, 3, padding=1, bias=False, **kind)
    layer.to(memory_format=torch.channels_last)
    x = torch.randn(batch, channels, pixels, pixels, **kind)
    x = x.to(memory_format=torch.channels_last).requires_grad_()
    slope = torch.randn_like(x)
    wanted = (x, layer.weight)

    def there() -> None:
        with torch.no_grad():
            layer(x)

    def there_and_back() -> None:
        torch.autograd.grad(layer(x), wanted, slope)

    once: Once = there_and_back if backward else there
    took = best(bench.device, once, times=10)
    work = 2 * 9 * channels**2 * pixels**2 * batch * (3 if backward else 1)
    return work / took / 1e12
