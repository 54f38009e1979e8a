"""Cold processes and images for their tests."""

from oracles import rows

from diffusion_cli.core import Spec
from diffusion_cli.processes import processes

SPEC = Spec((3, 6, 4))
N = 5
VARIANTS = [
    {"name": "blur"},
    {"name": "pixelate"},
    {"name": "mask"},
    {"name": "mask", "centre": "random"},
    {"name": "desaturate"},
    {"name": "fade"},
    {"name": "fade", "towards": "others"},
]
UNIFORM = {"name": "uniform"}


def images(count=N, seed=0, shape=SPEC.shape):
    return rows(count, seed).normal((count, *shape)).double() / 2


def others(path):
    assert path == "others"
    return images(40, 9).float()


def cold(operator, data=SPEC, **own):
    node = {"name": "cold", "operator": operator, **own}
    return processes.build(node, data=data, read=others)


def fitted(operator, **own):
    process = cold(operator, **own)
    process.fit(iter([images(64, 1).float(), images(64, 2).float()]))
    return process
