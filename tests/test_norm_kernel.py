"""The kernels of norm and silu: interpreted, and compiled for a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    find_spec("triton") is None, reason="this torch brings no Triton"
)

EXACT = """
import itertools
import torch
from diffusion_cli import norm_kernel
from diffusion_cli.networks.norm import agrees, silu_norm

torch.manual_seed(0)
LAYOUTS = (torch.contiguous_format, torch.channels_last)
KINDS = {torch.float32: 1e-5, torch.bfloat16: 8e-3, torch.float16: 1e-3}
# images, channels, groups, sides: groups of 3 and 12, one group, one channel, one pixel
SHAPES = [(2, 12, 4, 5, 7), (3, 24, 2, 3, 1), (1, 6, 1, 33, 2), (2, 5, 5, 4, 4),
          (2, 128, 32, 4, 4), (1, 384, 32, 9, 9), (2, 8, 2, 1, 1), (0, 8, 2, 3, 3)]
for (b, c, groups, *sides), layout in itertools.product(SHAPES, LAYOUTS):
    for kind, near in KINDS.items():
        x = (3 + torch.randn(b, c, *sides)).to(kind).contiguous(memory_format=layout)
        slope = torch.randn(x.shape).to(kind)
        gamma, beta = 1 + torch.randn(c), torch.randn(c)
        inputs = [each.double().requires_grad_() for each in (x, gamma, beta)]
        wanted = silu_norm(*inputs, groups, 1e-6)
        wanted = (wanted, *torch.autograd.grad(wanted, inputs, slope.double()))
        out, mean, rstd = norm_kernel.forward(x, gamma, beta, groups, 1e-6, kind)
        found = (out, *norm_kernel.backward(x, gamma, beta, mean, rstd, slope))
        for one, two, like in zip(found, wanted, (x, x, gamma, beta), strict=True):
            assert one.dtype == like.dtype and one.stride() == like.stride()
            scale = max(1.0, float(two.detach().abs().max())) if two.numel() else 1.0
            error = (one.double() - two).abs().max() / scale if two.numel() else 0.0
            assert error < near, (b, c, groups, sides, layout, kind, float(error))

# a large mean takes no digits of the spread
x = 1000 + torch.randn(2, 8, 6, 6)
exact = silu_norm(x.double(), torch.ones(8).double(), torch.zeros(8).double(), 2, 1e-6)
found, *_ = norm_kernel.forward(x, torch.ones(8), torch.zeros(8), 2, 1e-6, x.dtype)
torch.testing.assert_close(found.double(), exact, rtol=1e-3, atol=1e-3)

# what autocast reads and writes, and the probe
x = torch.randn(2, 8, 6, 6)
found, *_ = norm_kernel.forward(
    x, torch.ones(8), torch.zeros(8), 2, 1e-6, torch.bfloat16
)
assert found.dtype is torch.bfloat16
assert all(agrees(norm_kernel, x.device, kind) for kind in KINDS)
"""

WHOLE = """
import torch
from torch import nn
from diffusion_cli import norm_kernel
from diffusion_cli.networks import norm

torch.manual_seed(0)
layer = norm.NormSilu(4, 12, eps=1e-6)
nn.init.normal_(layer.weight), nn.init.normal_(layer.bias)
own = list(layer.parameters())

def fused(x):
    return norm._fused(norm_kernel, layer, x)

def gradients(function, x, twice):
    x = x.detach().requires_grad_()
    y = function(x)
    found = torch.autograd.grad(y.square().sum(), [x, *own], create_graph=twice)
    if twice:
        found += torch.autograd.grad(found[0].square().sum(), [x, *own])
    return y, *found

x = torch.randn(2, 12, 5, 3)
strided = torch.randn(2, 12, 5, 6)[..., ::2]
for given in (x, x.to(memory_format=torch.channels_last), strided):
    for twice in (False, True):
        for one, two in zip(
            gradients(fused, given, twice), gradients(layer, given, twice), strict=True
        ):
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)
with torch.no_grad():
    assert not fused(x).requires_grad
kept = []
with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda each: each):
    fused(x.requires_grad_())
assert sum(each.numel() for each in kept) == x.numel() + 2 * 12 + 2 * 2 * 4
"""

COMPILED = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from diffusion_cli import norm_kernel

sizes = {name: "i32" for name in ("groups", "pixels", "of_image", "of_channel",
                                  "of_pixel")}
held = {"PER": 12, "PADDED": 16, "WIDE": 64, "TALL": 64}
real = "*fp32"
for kind in ("*fp32", "*bf16", "*fp16"):
    parameters = dict.fromkeys(("gammas", "betas"), real)
    stored = dict.fromkeys(("means", "rstds"), real)
    forward = {"x": kind, "out": kind} | stored | parameters | sizes | {"eps": "fp32"}
    backward = {"x": kind, "into": kind, "out": kind, "of_gamma": real,
                "of_beta": real} | stored | parameters | sizes
    for fn, kinds in ((norm_kernel._forward, forward),
                      (norm_kernel._backward, backward)):
        for inner in ("of_channel", "of_pixel"):  # channels last, and first
            signature = kinds | {inner: "constexpr"} | dict.fromkeys(held, "constexpr")
            source = ASTSource(
                fn=fn, signature=signature, constexprs=held | {inner: 1}
            )
            assert triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]
"""


@pytest.mark.parametrize(
    ("code", "interpreted"), [(EXACT, "1"), (WHOLE, "1"), (COMPILED, "0")]
)
def test_it_is_the_norm_and_silu_of_torch(
    code: str, interpreted: str, tmp_path: Path
) -> None:
    told = {"TRITON_INTERPRET": interpreted, "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | told, capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()
