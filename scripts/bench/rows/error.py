"""Sampling: how far from the exact samples, at equal calls of the network."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from duel import Code, Setting, Side
from goals import Result, contest, row

TIMES = {"seconds", "worked"}
GOAL = {5: 0.06, 10: 0.036, 20: 0.030}  # sliced W2, by calls
LOG = {"grid": {"name": "log_sigma"}}
EAB = {"name": "eab", "grid": {"name": "asinh"}}
OWN = {
    "dcli eab": {"sampler": EAB},
    "dcli eab, tuned": {"sampler": EAB, "tuned": True},
    "dcli eab, order 3": {"sampler": {**EAB, "order": 3}},
    "dcli dpmpp": {"sampler": {"name": "dpmpp", **LOG}},
    "dcli euler": {"sampler": {"name": "euler", "grid": {"name": "rho"}}},
}
NOISY = {
    "dcli sde_dpmpp, order 3, eta 0.2": {
        "sampler": {"name": "sde_dpmpp", "order": 3, "eta": 0.2, **LOG}
    }
}
SOLVER = {"scheduler": "DPMSolverMultistepScheduler"}
UNIPC = {"scheduler": "UniPCMultistepScheduler"}
KARRAS = {"use_karras_sigmas": True}
AT_0 = {"end": 1e-4}  # exact.END: the samples are compared with the data
# function, package, arguments
OTHERS = {
    "diffusers DPM++ 2M": ("diffusers", "diffusers", SOLVER),
    "diffusers DPM++ 2M Karras": ("diffusers", "diffusers", SOLVER | KARRAS),
    "diffusers DPM++ 2M Lu": (
        "diffusers",
        "diffusers",
        SOLVER | {"use_lu_lambdas": True},
    ),
    "diffusers UniPC Karras": ("diffusers", "diffusers", UNIPC | KARRAS),
    "diffusers UniPC 3 exponential": (
        "diffusers",
        "diffusers",
        UNIPC | {"solver_order": 3, "use_exponential_sigmas": True},
    ),
    "azula zEAB 3": ("azula", "azula", {"sampler": "zEABSampler", "order": 3}),
    "azula xEAB 3": ("azula", "azula", {"sampler": "xEABSampler", "order": 3}),
    "k-diffusion DPM++ 2M exponential": (
        "k_diffusion",
        "k-diffusion",
        {"sampler": "sample_dpmpp_2m", "grid": "exponential"},
    ),
}
# those of a small run: each function once
LEAST = {"dcli eab", "dcli eab, tuned", *NOISY}
LEAST |= {"diffusers DPM++ 2M", "azula zEAB 3", "k-diffusion DPM++ 2M exponential"}


def _sides(
    setting: Setting, own: dict[str, Any], others: dict[str, Any], **more: Any
) -> list[Side]:
    """A process each, without a warm-up: nothing here depends on the clock."""
    more["small"] = setting.small
    if setting.small:
        own, others = (
            {name: how for name, how in given.items() if name in LEAST}
            for given in (own, others)
        )
    found: list[Side] = [
        Code(name, "own_errors.errors", setting, arguments=how | more, warm=0)
        for name, how in own.items()
    ]
    found += [
        Code(name, f"other_errors.{of}", setting, peer, how | more, warm=0)
        for name, (of, peer, how) in others.items()
    ]
    return found


@row("error")
def error(setting: Setting) -> list[Result]:
    """G10 and G11: `eab` as it is, and what else there is."""
    once = replace(setting, rounds=1)
    late = {
        f"{name}, at 0": (of, peer, how | AT_0)
        for name, (of, peer, how) in OTHERS.items()
        if of == "azula"
    }
    title = "Error at 6 to 50 calls with exact denoisers, relative to the data"
    sides = _sides(once, OWN, OTHERS | late)
    result, _ = contest("G10", title, sides, once, of="error")
    own = result.sides["dcli eab"]
    result.also = [name for name in own if name not in TIMES | {"error"}]
    times = {name: ratio["median"] for name, ratio in result.ratios.items()}
    plain, tuned = times["diffusers DPM++ 2M"], times["dcli eab, tuned"]
    best = min(times[name] for name in times if name.startswith("diffusers"))
    result.measured = (
        f"{plain:.1f}x less, {1 / best:.2f}x of its best; after `dcli tune` "
        f"{plain / tuned:.1f}x less, {tuned / best:.2f}x"
    )
    result.met = plain >= 8 and 1 / best <= 0.35
    stops = {name: times[name] for name in OTHERS if name in times}
    ends = {name: times.get(f"{name}, at 0", stops[name]) for name in stops}
    return [
        result,
        _beside("judged where that stops", stops, tuned, 0.9),
        _beside("at the data", ends, tuned, 0.5),
    ]


def _beside(where: str, times: dict[str, float], tuned: float, goal: float) -> Result:
    """G11 against the best of the peers."""
    peer = min(times, key=times.__getitem__)
    least = times[peer]
    told = f"{1 / least:.2f}x of {peer}, {where}; tuned {tuned / least:.2f}x"
    return Result("G11", told, 1 / least <= goal, "")


@row("circle")
def circle(setting: Setting) -> list[Result]:
    """G11b: the law of the samples, where the data are many."""
    once, peers = replace(setting, rounds=1), ("diffusers DPM++ 2M", "azula zEAB 3")
    own = {name: OWN[name] for name in ("dcli eab", "dcli eab, tuned", "dcli dpmpp")}
    others = {name: OTHERS[name] for name in peers}
    sides = _sides(once, own, others, calls=list(GOAL))
    sides += _sides(once, NOISY, {}, calls=[20])
    floor = "as much other data"
    given = {"calls": [20], "small": setting.small}
    sides += [Code(floor, "exact.another", once, arguments=given, warm=0)]
    title = "Sliced W2 to 8 normals on a circle, 65,536 samples"
    result, seen = contest("G11b", title, sides, once, of="20 calls")
    result.also = ("10 calls", "5 calls")
    found = {calls: seen["dcli eab"][f"{calls} calls"][0] for calls in GOAL}
    tuned = seen["dcli eab, tuned"]["5 calls"][0]
    drawn = min(seen[name]["20 calls"][0] for name in NOISY)
    told = ", ".join(f"{found[calls]:.3f}" for calls in GOAL)
    least = seen[floor]["20 calls"][0]
    result.measured = (
        f"{told} (5 calls tuned {tuned:.3f}), and {drawn:.3f}; other data {least:.3f}"
    )
    result.met = drawn <= 0.018 and all(found[n] <= most for n, most in GOAL.items())
    return [result]
