"""From a data set to batches."""

from __future__ import annotations

from duel import Code, Setting
from goals import Result, contest, row


@row("data")
def data(setting: Setting) -> list[Result]:
    """G5: images like CIFAR-10's, mirrored at random, in batches of 128."""
    size = {"count": 2_000} if setting.small else {}
    own = Code("dcli", "own_data.resident", setting, arguments=size)
    others = [
        Code(
            f"torchvision, {workers} workers",
            "others_data.torchvision",
            setting,
            arguments=size | {"workers": workers},
        )
        for workers in (0, 2)
    ]
    title = "An image of the data, mirrored at random and normalised, by the clock"
    result, _ = contest("G5", title, [own, *others], setting, of="seconds")
    best = min(found["median"] for found in result.ratios.values())
    rate = 1 / result.sides[own.name]["seconds"]["median"]
    result.measured = f"{rate / 1e3:.0f}k images per second, {best:.0f}x the best"
    result.met = best >= 40
    return [result]
