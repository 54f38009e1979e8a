"""Mixtures whose guided scores are known."""

import torch
from contexts import Stub
from labelled import Judge, Labelled
from oracles import gaussian, rows

from diffusion_cli.core import Spec
from diffusion_cli.denoiser import Model
from diffusion_cli.guidance import guidances
from diffusion_cli.networks import networks
from diffusion_cli.parametrisations import parametrisations

MEANS = torch.tensor([[1.0, 0.5], [-0.5, 1.0], [0.0, -1.0]], dtype=torch.float64)
WEIGHTS = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)


def mixture(schedule="vp"):
    own = {"sigma_max": 200.0} if schedule == "karras" else {}  # as noisy as vp ends
    return Labelled(gaussian(schedule, **own), MEANS, WEIGHTS)


def states(process, t, count=6):
    t = torch.as_tensor(t, dtype=torch.float64)
    x0 = MEANS[torch.arange(count) % 3] + rows(count, 3).normal((count, 2)).double() / 2
    return process.corrupt(x0, t, rows(count).normal((count, 2)).double())


def place(schedule="vp"):
    return Stub({"judge": Judge(mixture(schedule))}, {"y": MEANS})


def guided(denoiser, name, context=None, **own):
    node = {"name": name, **own}
    return guidances.build(node, denoiser=denoiser, context=context or place())


class Counted(Model):
    """A small real network, awake, that counts its rows."""

    def __init__(self, schedule="karras", classes=3):
        spec = Spec((2,), classes=classes)
        node = {"name": "mlp", "width": 16, "depth": 1, "fourier": 1}
        torch.manual_seed(0)
        network = networks.build(node, state=spec, out=(2,))
        for weight in network.parameters():
            torch.nn.init.normal_(weight, std=0.3)
        reading = parametrisations.build({"name": "edm"})
        super().__init__(gaussian(schedule), network, reading, spec)
        self.rows = []
        network.register_forward_hook(lambda n, i, o: self.rows.append(len(i[0])))
        self.requires_grad_(False)
