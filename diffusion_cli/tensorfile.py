"""Tensors as safetensors files: written without a copy, read without trust."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from diffusion_cli.artifact import broken

_LARGEST_HEADER = 16 << 20
_CHUNK = 8 << 20
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def content(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """The bytes of a safetensors file: length, JSON header, data; tensor by tensor.

    Wide types first, so that every tensor is aligned; then by name: equal tensors make
    equal bytes, whatever order they came in.
    """
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {}
    end = 0
    for name in order:
        tensor = tensors[name]
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the data begins at a multiple of 8
    yield struct.pack("<Q", len(text)) + text
    for name in order:
        flat = tensors[name].detach().cpu().contiguous().flatten()
        data = flat.view(torch.uint8).numpy().data
        for begin in range(0, len(data), _CHUNK):
            yield data[begin : begin + _CHUNK]


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, mapped from it: copy before changing them."""
    with path.open("rb") as file:
        head = file.read(8)
    if len(head) < 8 or struct.unpack("<Q", head)[0] > _LARGEST_HEADER:
        raise broken(path.parent, f"{path.name} has no sound header")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {key: file.get_tensor(key) for key in file.keys()}
    except SafetensorError as error:
        raise broken(path.parent, f"{path.name}: {error}") from error
