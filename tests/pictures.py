"""Small image folders for the tests, and what a data set makes of them."""

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from diffusion_cli.datasets import Dataset, datasets
from diffusion_cli.rng import Rng


def picture(
    level: int = 100, size: tuple[int, int] = (6, 4), mode: str = "RGB"
) -> Image.Image:
    bands = len(Image.new(mode, (1, 1)).getbands())
    return Image.new(mode, size, level if bands == 1 else (level,) * bands)


def put(image: Image.Image, path: Path, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def opened(path: Path, **values: Any) -> Dataset:
    cache = str(path.parent / "cache")
    data = datasets["image_folder"](path=str(path), cache=cache, **values)
    data.prepare()
    return data


def levels(data: Dataset) -> Tensor:
    x0, _ = data.batch(torch.arange(len(data)), Rng(0, torch.arange(len(data))))
    return ((x0 + 1) * 127.5).round().to(torch.uint8)


def labels(data: Dataset) -> list[int]:
    _, cond = data.batch(torch.arange(len(data)), Rng(0, torch.arange(len(data))))
    return cond["label"].tolist()
