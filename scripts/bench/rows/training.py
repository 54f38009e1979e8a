"""The training step of the CIFAR-10 network on a CPU, and its parts."""

from __future__ import annotations

import torch
from duel import Code, Setting, compare
from goals import Result, contest, row

from diffusion_cli.device import precision

BATCH = 8
WORDS = ["+exp=ddpm_cifar", "device=cpu"]
TINY = ["network.channels=32", "network.multipliers=[1,1,1,1]", "network.attention=[]"]


@row("training")
def training(setting: Setting) -> list[Result]:
    """G1, G2 and G3."""
    words = [*WORDS, f"trainer.batch={BATCH}", *(TINY if setting.small else [])]
    given, size = {"words": words}, {"batch": 1 if setting.small else BATCH}
    own = Code("dcli", "own_training.step", setting, arguments=given)
    plain = Code("diffusers, its example", *_peer("diffusers", setting), size)
    tuned = Code(
        "diffusers, tuned",
        *_peer("diffusers", setting),
        size | {"tuned": True} | fast(),
    )
    others = [
        Code("torchcfm, its example", *_peer("torchcfm", setting), size),
        Code("denoising-diffusion-pytorch", *_peer("lucidrains", setting), size),
    ]
    if setting.small:
        others = []
    title = f"A training step, CIFAR-10 network, batch {BATCH}"
    result, _ = contest("G1", title, [own, plain, tuned, *others], setting)
    ratio = result.ratios[plain.name]["median"]
    result.measured, result.met = f"{ratio:.2f}x", ratio >= 1.7
    best = result.ratios[tuned.name]["median"]
    second = Result("G2", f"{best:.2f}x", best >= 1.05, "")
    step = result.sides[own.name]["worked"]["median"]
    return [result, second, share(step, words, setting)]


def fast() -> dict[str, bool]:
    """The precision that dcli takes here by default, for what is compared in it."""
    return {"bf16": precision(torch.device("cpu"), "auto") == "bf16"}


def _peer(name: str, setting: Setting) -> tuple[str, Setting, str]:
    package = {"lucidrains": "denoising-diffusion-pytorch"}.get(name, name)
    return f"others_training.{name}", setting, package


def share(step: float, words: list[str], setting: Setting) -> Result:
    """G3: the step's own work by the time it took, beside what convolutions reach."""
    given = {"words": words}
    sides = [
        Code("work", "own_training.work", setting, arguments=given, warm=0),
        Code("peak", "own_training.peak", setting, arguments=fast()),
    ]
    seen, _ = compare(list(sides), setting)
    gflop, peak = max(seen["work"]["gflop"]), max(seen["peak"]["gflops"])
    part = gflop / step / peak
    told = f"{part:.0%}: {gflop:.0f} GFLOP in {step:.2f} s, peak {peak:.0f} GFLOP/s"
    return Result("G3", told, part >= 0.62, "")


@row("memory")
def memory(setting: Setting) -> list[Result]:
    """G15: what recomputing the blocks saves, and what it costs."""
    words = [*WORDS, f"trainer.batch={BATCH}", *(TINY if setting.small else [])]
    modes = {
        f"dcli, recompute={mode}": [*words, f"trainer.recompute={mode}"]
        for mode in ("none", "blocks", "attention")
    }
    size = {"batch": 1 if setting.small else BATCH}
    sides = [
        Code(name, "own_training.memory", setting, arguments={"words": given})
        for name, given in modes.items()
    ]
    peers = [
        Code(name, *_peer("diffusers", setting), size | {"recompute": recompute})
        for name, recompute in (("diffusers", False), ("diffusers, recomputing", True))
    ]
    title = f"Recomputing activations, CIFAR-10 network, batch {BATCH}"
    result, seen = contest("G15", title, [*sides, *peers], setting)
    whole, blocks, attention = (seen[side.name]["kept"][0] for side in sides)
    theirs = [seen[side.name]["kept"][0] for side in peers]
    times = [result.ratios[side.name]["median"] for side in sides[1:]]
    cost = (
        result.ratios[peers[1].name]["median"] / result.ratios[peers[0].name]["median"]
    )
    result.measured = (
        f"blocks: {whole / blocks:.1f}x less at {times[0]:.2f}x time ({whole:.1f} to "
        f"{blocks:.1f} MB an image); attention: {whole / attention:.2f}x at "
        f"{times[1]:.2f}x; diffusers: {theirs[0] / theirs[1]:.1f}x at {cost:.2f}x "
        f"({theirs[0]:.1f} to {theirs[1]:.1f} MB)"
    )
    result.met = any(
        whole / each >= 1.6 and took <= 1.06
        for each, took in zip((blocks, attention), times, strict=True)
    )
    return [result]


@row("tail")
def tail(setting: Setting) -> list[Result]:
    """G4: optimiser and average of weights, 35.7 million of them."""
    words = [*WORDS, "optimizer=adamw", *(TINY if setting.small else [])]
    own = Code("dcli", "own_training.tail", setting, arguments={"words": words})
    peer = Code("diffusers", "others_training.diffusers_tail", setting, "diffusers")
    title = "Optimiser and average of weights, 35.7 million weights"
    result, _ = contest("G4", title, [own, peer], setting)
    ratio = result.ratios[peer.name]["median"]
    result.measured, result.met = f"{ratio:.2f}x", ratio >= 2.2
    return [result]
