"""Sampling: what a loop costs beside its network, and with it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from duel import Code, Setting, ratios
from goals import Result, contest, row

from rows.training import TINY, WORDS

STEPS, BATCH = 50, 4
LONG = 5  # rounds of whole samples, at most: one takes minutes
OTHERS = {
    "diffusers DDIMScheduler": ("diffusers_scheduler", "diffusers"),
    "diffusers DDIMPipeline": ("diffusers_pipeline", "diffusers"),
    "diffusers DDPMScheduler": ("diffusers_ancestral", "diffusers"),
    "azula DDIMSampler": ("azula", "azula"),
    "denoising-diffusion-pytorch DDIM": ("lucidrains", "denoising-diffusion-pytorch"),
    "smalldiffusion": ("smalldiffusion", "smalldiffusion"),
    "k-diffusion Euler": ("k_diffusion", "k-diffusion"),
}
NOISY = ("dcli ancestral", "diffusers DDPMScheduler")  # both draw at every step
OWN: dict[str, dict[str, Any]] = {
    "dcli ddim": {
        "sampler": {"name": "ancestral", "grid": {"name": "uniform"}, "eta": 0.0}
    },
    "dcli euler": {"sampler": {"name": "euler", "grid": {"name": "uniform"}}},
    "dcli dpmpp": {"sampler": {"name": "dpmpp", "grid": {"name": "log_sigma"}}},
    "dcli eab": {"sampler": {"name": "eab", "grid": {"name": "rho"}}},
    "dcli ancestral": {"sampler": {"name": "ancestral", "grid": {"name": "uniform"}}},
}


@row("loop")
def loop(setting: Setting) -> list[Result]:
    """G8: 50 steps of DDIM for one image of 3x32x32, in microseconds a step."""
    size = {"steps": STEPS, "batch": 1}
    own = [
        Code(name, "own.loop", setting, arguments=node | size)
        for name, node in OWN.items()
    ]
    others = [
        Code(name, f"others.{of}", setting, peer, size)
        for name, (of, peer) in OTHERS.items()
    ]
    title = f"Sampling loop without its network, {STEPS} steps, one image 3x32x32"
    result, seen = contest("G8", title, [*own, *others], setting)
    loops = [result.ratios[name]["median"] for name in list(OTHERS)[:2]]
    step, drawn = (
        result.sides[name]["worked"]["median"] / STEPS * 1e6
        for name in ("dcli ddim", NOISY[0])
    )
    draws = (seen[name]["worked"] for name in NOISY)
    noise = ratios(*draws)["median"]
    result.measured = (
        f"{step:.0f} us a step: {loops[0]:.1f}x below the scheduler, "
        f"{loops[1]:.1f}x below the pipeline; with noise at every step "
        f"{drawn:.0f} us, DDPMScheduler takes {noise:.2f}x of that"
    )
    result.met = loops[0] >= 8 and loops[1] >= 14
    return [result]


@row("sampling")
def sampling(setting: Setting) -> list[Result]:
    """G9: DDIM with the CIFAR-10 network, each side in the precision it chooses."""
    few = replace(setting, rounds=min(setting.rounds, LONG))
    words, batch = [*WORDS, f"sampler.steps={STEPS}"], BATCH
    if setting.small:
        words, batch = [*WORDS, *TINY, "sampler.steps=2"], 1
    size = {"steps": 2 if setting.small else STEPS, "batch": batch}
    size["small"] = setting.small
    own = Code(
        "dcli", "own_sampling.draw", few, None, {"words": words, "batch": batch}, 1
    )
    plain, cast = (
        Code(name, "others_sampling.pipeline", few, "diffusers", size | how, 1)
        for name, how in (
            ("diffusers DDIMPipeline", {}),
            ("diffusers DDIMPipeline, bf16", {"bf16": True}),
        )
    )
    title = f"{STEPS} steps of DDIM, {batch} images, CIFAR-10 network"
    result, _ = contest("G9", title, [own, plain, cast], few)
    first, second = (result.ratios[side.name]["median"] for side in (plain, cast))
    result.measured = f"{first:.2f}x; {second:.2f}x with its network in bf16 too"
    result.met = first >= 1.7
    return [result]
