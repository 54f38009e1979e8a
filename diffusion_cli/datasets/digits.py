"""The handwritten digits that come with the package."""

from __future__ import annotations

from typing import Literal

from diffusion_cli.datasets import datasets
from diffusion_cli.datasets.embedded import digits
from diffusion_cli.datasets.images import Images, image_spec
from diffusion_cli.datasets.tables import Table


@datasets("digits")
class Digits(Images):
    """1,797 real handwritten digits, 8x8 pixels with levels 0 .. 16, ten classes.

    They are the test half of "Optical Recognition of Handwritten Digits": 32x32 bitmaps
    counted in blocks of 4x4. Unchanged but for the file format.

    Reference: E. Alpaydin and C. Kaynak 1998, UCI Machine Learning Repository,
    doi:10.24432/C50P49, CC BY 4.0.

    Args:
        labels: Serve the digit as a class label.
        split: All digits, nine of ten, or every tenth.
    """

    def __init__(
        self, labels: bool = True, split: Literal["all", "train", "test"] = "all"
    ) -> None:
        super().__init__()
        self.split = split
        names = tuple("0123456789") if labels else ()
        self.spec = image_spec((1, 8, 8), names, levels=17)

    def read(self) -> Table:
        return digits(self.split)
