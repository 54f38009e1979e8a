"""Processes without Gaussian noise, with every part: fitting, or refused by theory."""

import itertools

import pytest
from choices import formulation, node, options

from diffusion_cli import assemble, config
from diffusion_cli.core import Spec
from diffusion_cli.errors import ConfigError

SPEC = Spec((2,), classes=2)
PROCESSES = ("pfgm", "pfgmpp", "radial", "idempotent")
SCORED = {  # they need a score, an SDE, or normal noise
    "parametrisation": {"score", "learned", "npr", "sn"},
    "objective": {"hybrid", "implicit", "second_moment", "sliced", "vlb"},
    "sampler": {
        *("annealed_langevin", "euler_maruyama", "pc", "reverse_diffusion"),
        *("sde_dpmpp",),
    },
}
TOKENS = {
    "parametrisation": {"clean", "logits", "subs"},
    "objective": {"cross_entropy", "token_bound", "token_hybrid"},
    "sampler": {"cached", "confident", "first_hitting", "improved", "tokens"},
}


def values(process, **changes):
    small = {"name": "mlp", "width": 16, "depth": 1, "fourier": 0}
    network, _ = config.roles()["network"].check(small, "network")
    common = {"seed": 0, "dataset": {"name": "toy2d"}, "network": network}
    common |= {"coupling": {"name": "independent"}, "guidance": []}
    own = formulation(process)
    return common | own | {role: node(role, name) for role, name in changes.items()}


def refused(process, role, name):
    """Whether the theory has no place for this part; the rest is the process's own."""
    if name in TOKENS[role]:
        return None  # their rooms' business
    if name in SCORED[role]:
        return True
    jump = process == "idempotent"
    if role == "sampler":
        # with no path there is one step, the process's own, at times that are even
        return jump and name not in ("ancestral", "one_step")
    if role == "parametrisation":
        if name == "classes" or jump:
            return name != "direct"
        # the big batch trains a field, and denoise everything else
        return (name == "field") != (process == "pfgm") if process == "pfgm" else None
    return None


CASES = [
    (process, role, name)
    for process, role in itertools.product(PROCESSES, SCORED)
    for name in options(role)
    if refused(process, role, name) is not None
]


@pytest.mark.parametrize(("process", "role", "name"), CASES)
def test_it_fits_or_is_refused_with_a_reason(process, role, name):
    chosen = values(process, **{role: name})
    if refused(process, role, name):
        with pytest.raises(ConfigError) as caught:
            assemble.parts(chosen, SPEC)
        assert "hint:" in caught.value.render()
    else:
        assemble.parts(chosen, SPEC)
