"""Sampling: how far from the exact samples, at equal calls of the network."""

from __future__ import annotations

from dataclasses import replace

from duel import Code, Setting
from goals import Result, contest, row

GRID = {"grid": {"name": "rho", "rho": 20.0}}
OWN = {
    "dcli eab": {"sampler": {"name": "eab", **GRID}},
    "dcli eab, tuned": {"sampler": {"name": "eab", **GRID}, "tuned": True},
    "dcli dpmpp": {"sampler": {"name": "dpmpp", "grid": {"name": "log_sigma"}}},
    "dcli euler": {"sampler": {"name": "euler", "grid": {"name": "rho"}}},
}
SOLVER, UNIPC = "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"
ZERO = {"final_sigmas_type": "zero"}
OTHERS = {
    "diffusers DPM++ 2M": ("diffusers", "diffusers", {"scheduler": SOLVER}),
    "diffusers DPM++ 2M Karras": (
        "diffusers",
        "diffusers",
        {"scheduler": SOLVER, "use_karras_sigmas": True},
    ),
    "diffusers DPM++ 2M Lu": (
        "diffusers",
        "diffusers",
        {"scheduler": SOLVER, "use_lu_lambdas": True},
    ),
    "diffusers UniPC Karras": (
        "diffusers",
        "diffusers",
        {"scheduler": UNIPC, "use_karras_sigmas": True},
    ),
    "azula zEAB 3": ("azula", "azula", {"sampler": "zEABSampler", "order": 3}),
    "azula xEAB 3": ("azula", "azula", {"sampler": "xEABSampler", "order": 3}),
    "k-diffusion DPM++ 2M exponential": (
        "k_diffusion",
        "k-diffusion",
        {"sampler": "sample_dpmpp_2m", "grid": "exponential"},
    ),
}


@row("error")
def error(setting: Setting) -> list[Result]:
    """G10 and G11: `eab` as it is; nothing here depends on the clock."""
    once = replace(setting, rounds=1)
    own = [
        Code(name, "own_errors.errors", once, arguments=how, warm=0)
        for name, how in OWN.items()
    ]
    others = [
        Code(name, f"other_errors.{of}", once, peer, how, warm=0)
        for name, (of, peer, how) in OTHERS.items()
    ]
    title = "Error at 6 to 50 calls with exact denoisers, relative to the data"
    result, _ = contest("G10", title, [*own, *others], once, of="error")
    times = {name: ratio["median"] for name, ratio in result.ratios.items()}
    plain, tuned = times["diffusers DPM++ 2M"], times.pop("dcli eab, tuned")
    best = min(times[name] for name in times if name.startswith("diffusers"))
    result.measured = (
        f"{plain:.1f}x less, {1 / best:.2f}x of its best; after `dcli tune` "
        f"{plain / tuned:.1f}x less, {tuned / best:.2f}x"
    )
    result.met = plain >= 8 and 1 / best <= 0.35
    peer = min((name for name in OTHERS if name in times), key=times.__getitem__)
    least = times[peer]
    told = f"{1 / least:.2f}x of {peer}; after `dcli tune` {tuned / least:.2f}x"
    return [result, Result("G11", told, 1 / least <= 0.9, "")]
