"""What a checkpoint costs."""

from __future__ import annotations

from duel import Code, Setting
from goals import Result, contest, row

from rows.training import TINY, WORDS


@row("checkpoints")
def checkpoints(setting: Setting) -> list[Result]:
    """G13 and G14: 35.7 million weights, two moments and an average of each."""
    given = {"words": [*WORDS, *(TINY if setting.small else [])]}
    return [stall(given, setting), restore(given, setting)]


def _side(name: str, of: str, given: dict[str, list[str]], setting: Setting) -> Code:
    return Code(name, f"own_checkpoints.{of}", setting, arguments=given)


def stall(given: dict[str, list[str]], setting: Setting) -> Result:
    """G13: the writer is a thread; training waits for a copy in memory."""
    own = _side("dcli, until training goes on", "stall", given, setting)
    peer = _side("torch.save", "torch_save", given, setting)
    title = "Saving 572 MB, by the clock"
    result, _ = contest("G13", title, [own, peer], setting, of="seconds")
    ratio = result.ratios[peer.name]["median"]
    whole = result.sides[own.name]["whole"]["median"]
    result.measured = f"{ratio:.2f}x; hashed and on the disk after {whole:.1f} s"
    result.met = ratio >= 8
    return result


def restore(given: dict[str, list[str]], setting: Setting) -> Result:
    """G14: with the check of every hash, which torch.load has no counterpart of."""
    own = _side("dcli, hashes checked", "restore", given, setting)
    peer = _side("torch.load", "torch_load", given, setting)
    title = "Restoring 572 MB from the page cache, by the clock"
    result, _ = contest("G14", title, [own, peer], setting, of="seconds")
    ratio = result.ratios[peer.name]["median"]
    parts = result.sides[own.name]
    load = result.sides[peer.name]["seconds"]["median"]
    bare = load / parts["restoring"]["median"]
    result.measured = (
        f"{ratio:.2f}x with every sha256 checked, which takes "
        f"{parts['hashing']['median']:.2f} s of {parts['seconds']['median']:.2f} s; "
        f"the restore without that check is {bare:.1f}x faster than torch.load"
    )
    result.met = ratio >= 2
    return result
