"""The training step of the CIFAR-10 network on a CPU, and its parts."""

from __future__ import annotations

from dataclasses import replace

import torch
from duel import Code, Setting, Side, compare, summary
from goals import Result, contest, row
from subjects.memory import KEPT, MOST

from diffusion_cli.device import precision

BATCH = 8
WORDS = ["+exp=ddpm_cifar", "device=cpu"]
TINY = ["network.channels=32", "network.multipliers=[1,1,1,1]", "network.attention=[]"]


@row("training")
def training(setting: Setting) -> list[Result]:
    """G1, G2 and G3."""
    words = [*WORDS, f"trainer.batch={BATCH}", *(TINY if setting.small else [])]
    given, size = {"words": words}, _size(setting)
    own = Code(f"dcli, {bits()}", "own_training.step", setting, arguments=given)
    plain = Code("diffusers, its example, fp32", *_peer("diffusers", setting), size)
    tuned = Code(
        f"diffusers, tuned, {bits()}",
        *_peer("diffusers", setting),
        size | {"tuned": True} | fast(),
    )
    batch = {"batch": size["batch"]}
    shape = "denoising-diffusion-pytorch, a network of another shape, fp32"
    others = [
        Code("torchcfm, its example, fp32", *_peer("torchcfm", setting), batch),
        Code(shape, *_peer("lucidrains", setting), batch),
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


def bits() -> str:
    """The same as a word."""
    return "bf16" if fast()["bf16"] else "fp32"


def _size(setting: Setting) -> dict[str, int]:
    return {"batch": 1 if setting.small else BATCH, "small": setting.small}


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
    """G15: what recomputing saves, and what it costs."""
    words = [*WORDS, f"trainer.batch={BATCH}", *(TINY if setting.small else [])]
    modes = ("norms", "blocks", "attention")
    ours = {
        f"dcli, {bits()}, recompute={mode}": [*words, f"trainer.recompute={mode}"]
        for mode in ("none", *modes)
    }
    theirs = {
        "diffusers, fp32": {"recompute": False},
        "diffusers, fp32, recomputing": {"recompute": True},
    }

    def sides(own: str, other: str, setting: Setting, warm: int) -> list[Side]:
        """All of them, by functions of `subjects`."""
        of, size = f"others_training.{other}", _size(setting)
        found = [
            Code(name, f"own_training.{own}", setting, None, {"words": given}, warm)
            for name, given in ours.items()
        ]
        return found + [
            Code(name, of, setting, "diffusers", size | given, warm)
            for name, given in theirs.items()
        ]

    title = f"Recomputing activations, CIFAR-10 network, batch {BATCH}"
    codes = sides("memory", "diffusers", setting, warm=2)
    result, seen = contest("G15", title, codes, setting)
    once = replace(setting, rounds=1)
    peaks, _ = compare(sides("most", "diffusers_most", once, warm=0), once)
    for name, numbers in peaks.items():
        result.sides[name][MOST] = summary(numbers[MOST])
    result.also = [KEPT, MOST]
    most = " / ".join(f"{peaks[name][MOST][0]:.0f}" for name in ours)
    whole, *less = (seen[name][KEPT][0] for name in ours)
    plain, saving = (seen[name][KEPT][0] for name in theirs)
    times = [result.ratios[name]["median"] for name in list(ours)[1:]]
    first, second = (result.ratios[name]["median"] for name in theirs)
    parts = [
        f"{mode}: {whole / size:.2f}x less at {time:.2f}x time ({size:.1f} MB)"
        for mode, size, time in zip(modes, less, times, strict=True)
    ]
    result.measured = (
        f"of {whole:.1f} MB an image, {'; '.join(parts)}; diffusers: "
        f"{plain / saving:.1f}x at {second / first:.2f}x ({plain:.1f} to {saving:.1f} "
        f"MB); the process needs {most} MB at most without and with {', '.join(modes)}"
    )
    result.met = any(
        whole / size >= 1.6 and time <= 1.06
        for size, time in zip(less, times, strict=True)
    )
    return [result]


@row("tail")
def tail(setting: Setting) -> list[Result]:
    """G4: optimiser and average of weights, 35.7 million of them."""
    words = [*WORDS, "optimizer=adamw", *(TINY if setting.small else [])]
    own = Code("dcli", "own_training.tail", setting, arguments={"words": words})
    small = {"small": setting.small}
    peer = Code(
        "diffusers", "others_training.diffusers_tail", setting, "diffusers", small
    )
    title = "Optimiser and average of weights, 35.7 million weights"
    result, _ = contest("G4", title, [own, peer], setting)
    ratio = result.ratios[peer.name]["median"]
    result.measured, result.met = f"{ratio:.2f}x", ratio >= 2.2
    return [result]
