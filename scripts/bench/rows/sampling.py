"""Sampling: what a loop costs beside its network."""

from __future__ import annotations

from typing import Any

from duel import Code, Setting
from goals import Result, contest, row

STEPS = 50
OTHERS = {
    "diffusers DDIMScheduler": ("diffusers_scheduler", "diffusers"),
    "diffusers DDIMPipeline": ("diffusers_pipeline", "diffusers"),
    "azula DDIMSampler": ("azula", "azula"),
    "denoising-diffusion-pytorch DDIM": ("lucidrains", "denoising-diffusion-pytorch"),
    "smalldiffusion": ("smalldiffusion", "smalldiffusion"),
    "k-diffusion Euler": ("k_diffusion", "k-diffusion"),
}
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
    result, _ = contest("G8", title, [*own, *others], setting)
    loops = [result.ratios[name]["median"] for name in list(OTHERS)[:2]]
    step = result.sides["dcli ddim"]["worked"]["median"] / STEPS * 1e6
    result.measured = (
        f"{step:.0f} us a step: {loops[0]:.1f}x below the scheduler, "
        f"{loops[1]:.1f}x below the pipeline"
    )
    result.met = loops[0] >= 8 and loops[1] >= 14
    return [result]
