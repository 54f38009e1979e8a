"""Sequences of characters: what every data set of text shares. Registers nothing."""

from __future__ import annotations

import logging
from abc import ABC
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from diffusion_cli.core import Spec
from diffusion_cli.datasets import Dataset
from diffusion_cli.datasets.given import ARRAYS, files_in, token_array
from diffusion_cli.datasets.storage import staged
from diffusion_cli.errors import ConfigError, DataError

_log = logging.getLogger(__name__)
COLUMNS = 64  # characters in a line of a picture
SHOWN = 24  # samples in a picture, at most
HIDDEN = "\u00b7"  # what a masked token looks like
CELL = (6, 12)  # pixels of a character


def alphabet(spec: Spec) -> str | None:
    """The characters of the tokens in order; None for bytes."""
    known = spec.codec.get("characters")
    return None if known is None else str(known)


def spelled(x: Tensor, spec: Spec) -> list[str]:
    """Samples (B, L) as texts; tokens that no data has are shown as hidden."""
    known = alphabet(spec)
    rows = x.detach().cpu().tolist()
    if known is not None:
        text = known + HIDDEN
        return ["".join(text[min(i, len(known))] for i in row) for row in rows]
    pieces = []
    for row in rows:
        whole = bytes(i for i in row if i < 256) if max(row) > 255 else bytes(row)
        pieces.append(whole.decode("utf-8", "replace"))
    return pieces


def read(text: str, spec: Spec) -> list[int]:
    """The tokens of a text; `ValueError` with the first character that has none."""
    known = alphabet(spec)
    if known is None:
        return list(text.encode("utf-8"))
    index = {character: i for i, character in enumerate(known)}
    for character in text:
        if character not in index:
            raise ValueError(repr(character))
    return [index[character] for character in text]


class Writing(Dataset, ABC):
    """Tokens that stand for characters, `spec.codec["characters"]`, or for bytes."""

    @classmethod
    def save(cls, x: Tensor, spec: Spec, folder: Path, first: int) -> None:
        known = alphabet(spec)
        texts = spelled(x, spec) if known is not None else []
        for number, row in enumerate(x.detach().cpu().tolist()):
            raw = texts[number].encode("utf-8") if texts else bytes(row)
            with staged(folder / f"{first + number:06d}.txt") as part:
                part.write_bytes(raw)

    @classmethod
    def load(cls, path: Path, spec: Spec) -> Tensor:
        """Whole windows; what follows the last of a file is left out, and told."""
        (length,) = spec.shape
        found: list[Tensor] = []
        over = 0
        for file in files_in(path, (".txt",)):
            if file.suffix.lower() in ARRAYS:
                found.append(token_array(file, spec))
                continue
            tokens = torch.tensor(_tokens(file, spec), dtype=torch.int64)
            whole, rest = divmod(len(tokens), length)
            over += rest
            found.append(tokens[: whole * length].view(whole, length))
        if not sum(map(len, found)):
            message = f"{path}: holds no text of {length} tokens"
            raise DataError(message, "a longer text, in a .txt file or a folder")
        if over:
            told = "%s: %d tokens after the last %d of a file are left out"
            _log.warning(told, path, over, length)
        return torch.cat(found)

    @classmethod
    def prompt(cls, text: str, spec: Spec, mask: str) -> Tensor:
        (length,) = spec.shape
        hint = "guidance=infill guidance.prompt='To be ### not' guidance.mask='#'"
        if len(mask) != 1:
            raise ConfigError(f"guidance.mask: one character, got {mask!r}", hint)
        try:
            tokens = []
            for i, part in enumerate(text.split(mask)):
                tokens += ([-1] if i else []) + read(part, spec)
        except ValueError as error:
            message = f"prompt: the model does not know the character {error}"
            raise ConfigError(message, f"only {alphabet(spec)!r}") from error
        if len(tokens) > length:
            message = f"prompt: {len(tokens)} tokens, the model writes {length}"
            raise ConfigError(message, "a shorter prompt")
        return torch.tensor(tokens + [-1] * (length - len(tokens)))

    @classmethod
    def picture(cls, x: Tensor, spec: Spec) -> Tensor:
        texts = spelled(x[:SHOWN], spec)
        sheet: list[str] = []
        for text in texts:
            for line in text.replace("\r", "").split("\n"):
                cuts = range(0, max(1, len(line)), COLUMNS)
                sheet += [line[cut : cut + COLUMNS] for cut in cuts]
            sheet.append("")
        width, height = CELL
        size = (width * (COLUMNS + 2), height * (len(sheet) + 1))
        image = Image.new("RGB", size, "white")
        draw, font = ImageDraw.Draw(image), ImageFont.load_default_imagefont()
        for row, line in enumerate(sheet):
            plain = line.encode("latin-1", "replace").decode("latin-1")
            place = (width, height // 2 + row * height)
            draw.text(place, plain, fill="black", font=font)
        pixels = np.array(image, dtype=np.uint8)
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def _tokens(file: Path, spec: Spec) -> list[int]:
    try:
        if alphabet(spec) is None:
            return list(file.read_bytes())
        return read(file.read_bytes().decode("utf-8"), spec)
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}", "another path") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: is not UTF-8", "dataset.unit=bytes") from error
    except ValueError as error:
        message = f"{file}: the model does not know the character {error}"
        raise DataError(message, f"only {alphabet(spec)!r}") from error
