"""From an image file of any mode to uint8 levels of one size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from diffusion_cli.datasets.sources import Entry, Source

Size = tuple[int, int]  # width, height
Fit = Literal["exact", "crop", "resize"]
PLAIN = {1: "L", 3: "RGB"}  # Pillow's modes: 8-bit grey and colour


class Decoded(NamedTuple):
    """An image, or what is wrong with it."""

    name: str
    pixels: NDArray[np.uint8] | None = None  # (C, H, W); None: broken or another size
    mode: str = ""
    size: Size = (0, 0)  # as stored, after EXIF rotation
    fault: str = ""  # why it cannot be decoded


class Decoder(NamedTuple):
    """Reads an image file: EXIF rotation, transparency, channels, then the size.

    Transparent pixels are laid on white; 16-bit levels are divided by 257; colours turn
    grey by ITU-R 601 luma; CMYK becomes RGB without a colour profile; of an animation,
    the first frame counts.

    Args:
        size: Width and height to reach.
        fit: `exact` takes only that size, `crop` cuts its centre out, `resize` scales
            the shorter side to it (bicubic, antialiased) and crops the longer one.
        channels: 1 for grey, 3 for colours.
    """

    size: Size | None
    fit: Fit
    channels: int

    def __call__(self, source: Source, entry: Entry) -> Decoded:
        """One file; a broken one is reported, not raised."""
        try:
            with (
                source.open(entry) as file,
                Image.open(file, formats=("PNG", "JPEG", "WEBP")) as image,
            ):
                return self._convert(entry.name, image)
        except MemoryError:
            raise
        except UnidentifiedImageError:  # its own words show the address of the file
            return Decoded(entry.name, fault="no PNG, JPEG or WebP image")
        except Exception as error:  # decoders of broken files raise whatever they like
            return Decoded(entry.name, fault=str(error) or type(error).__name__)

    def _convert(self, name: str, image: Image.Image) -> Decoded:
        limit = Image.MAX_IMAGE_PIXELS
        if limit and image.width * image.height > limit:
            raise ValueError(
                f"{image.width}x{image.height} is more than {limit} pixels"
            )
        mode = image.mode
        upright = ImageOps.exif_transpose(image)
        size = upright.size
        fitted = self._fitted(self._plain(upright))
        if fitted is None:
            return Decoded(name, None, mode, size)
        pixels = np.asarray(fitted).reshape(fitted.height, fitted.width, self.channels)
        return Decoded(name, pixels.transpose(2, 0, 1), mode, size)

    def _plain(self, image: Image.Image) -> Image.Image:
        """8-bit grey or RGB, without transparency."""
        if image.mode.startswith("I"):
            image = Image.fromarray(_eight_bits(np.asarray(image)))
        elif image.mode == "F":
            raise ValueError("levels are floating-point numbers of no known range")
        if image.has_transparency_data:
            coloured = image.convert("RGBA")
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, coloured)
        return image.convert(PLAIN[self.channels])

    def _fitted(self, image: Image.Image) -> Image.Image | None:
        if self.size is None or image.size == self.size:
            return image
        if self.fit == "resize":
            return ImageOps.fit(image, self.size, Image.Resampling.BICUBIC)
        width, height = self.size
        if self.fit == "exact" or image.width < width or image.height < height:
            return None
        left, top = (image.width - width) // 2, (image.height - height) // 2
        return image.crop((left, top, left + width, top + height))


def converted(modes: Mapping[str, int], channels: int) -> str:
    """Which modes were not the wanted one, and how often; empty if all were."""
    plain = PLAIN[channels]
    others = [f"{n} {mode}" for mode, n in sorted(modes.items()) if mode != plain]
    end = "grey" if channels == 1 else plain
    return f"converted {', '.join(others)} to {end}" if others else ""


def _eight_bits(levels: NDArray[np.integer]) -> NDArray[np.uint8]:
    if levels.min() < 0 or levels.max() > 65535:
        raise ValueError("levels do not fit in 16 bits")
    return ((levels.astype(np.int64) + 128) // 257).astype(np.uint8)
