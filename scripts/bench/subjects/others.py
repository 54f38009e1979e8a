"""Loops of the other packages, each as its own documentation writes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

SHAPE = (3, 32, 32)
Once = Callable[[], None]


class Constant(nn.Module):
    """A network that costs nothing: the same output every time."""

    def __init__(self, batch: int) -> None:
        super().__init__()
        self.out = torch.randn(batch, *SHAPE)
        self.dtype = torch.float32

    def forward(self, x: Tensor, *conditions: Any, **more: Any) -> Tensor:
        return self.out


def diffusers_scheduler(steps: int = 50, batch: int = 1) -> Once:
    """The loop that diffusers' documentation tells to write."""
    from diffusers import DDIMScheduler

    return _scheduled(DDIMScheduler(), steps, batch)


def diffusers_ancestral(steps: int = 50, batch: int = 1) -> Once:
    """The same loop with the scheduler that draws noise at every step."""
    from diffusers import DDPMScheduler

    return _scheduled(DDPMScheduler(), steps, batch)


def _scheduled(scheduler: Any, steps: int, batch: int) -> Once:
    network = Constant(batch)

    @torch.no_grad()
    def once() -> None:
        scheduler.set_timesteps(steps)
        x = torch.randn(batch, *SHAPE)
        for t in scheduler.timesteps:
            x = scheduler.step(network(x, t), t, x).prev_sample

    return once


def diffusers_pipeline(steps: int = 50, batch: int = 1) -> Once:
    """Its pipeline, with a U-Net of next to no size whose forward costs nothing."""
    from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
    from diffusers.models.unets.unet_2d import UNet2DOutput

    sizes = {"block_out_channels": (32,), "layers_per_block": 1}
    kinds = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    network = UNet2DModel(sample_size=SHAPE[-1], **sizes, **kinds)
    out = UNet2DOutput(sample=torch.randn(batch, *SHAPE))
    network.forward = lambda *ignored, **more: out
    pipeline = DDIMPipeline(network, DDIMScheduler())
    pipeline.set_progress_bar_config(disable=True)

    def once() -> None:
        pipeline(batch_size=batch, num_inference_steps=steps, output_type="pt")

    return once


def azula(steps: int = 50, batch: int = 1) -> Once:
    """Azula's DDIM."""
    from azula.denoise import SimpleDenoiser
    from azula.noise import VPSchedule
    from azula.sample import DDIMSampler

    denoiser = SimpleDenoiser(Constant(batch), VPSchedule())
    sampler = DDIMSampler(denoiser, steps=steps, silent=True)

    @torch.no_grad()
    def once() -> None:
        sampler(sampler.init((batch, *SHAPE)))

    return once


def lucidrains(steps: int = 50, batch: int = 1) -> Once:
    """The DDIM of denoising-diffusion-pytorch."""
    from denoising_diffusion_pytorch import GaussianDiffusion

    network = Constant(batch)
    network.channels = SHAPE[0]
    network.self_condition = network.random_or_learned_sinusoidal_cond = False
    network.out_dim = SHAPE[0]
    given = {"image_size": SHAPE[-1], "timesteps": 1000, "sampling_timesteps": steps}
    diffusion = GaussianDiffusion(network, **given)

    def once() -> None:
        diffusion.sample(batch_size=batch)

    return once


def smalldiffusion(steps: int = 50, batch: int = 1) -> Once:
    """The sampling loop of smalldiffusion."""
    from smalldiffusion import ScheduleDDPM, samples

    class Model(Constant):
        input_dims = SHAPE

        def rand_input(self, batchsize: int) -> Tensor:
            return torch.randn(batchsize, *SHAPE)

        def predict_eps_cfg(self, *ignored: Any) -> Tensor:
            return self.out

        predict_eps = predict_eps_cfg

    model, sigmas = Model(batch), ScheduleDDPM(N=1000).sample_sigmas(steps)

    def once() -> None:
        for _ in samples(model, sigmas, batchsize=batch, gam=1):
            pass

    return once


def k_diffusion_sampling() -> Any:
    """Its samplers, past a package file that imports code for evaluation."""
    import importlib
    import importlib.util
    import sys
    import types
    from pathlib import Path

    found = importlib.util.find_spec("k_diffusion")
    assert found is not None and found.origin is not None
    package = types.ModuleType("k_diffusion")
    package.__path__ = [str(Path(found.origin).parent)]
    sys.modules["k_diffusion"] = package
    return importlib.import_module("k_diffusion.sampling")


def k_diffusion(steps: int = 50, batch: int = 1) -> Once:
    """Euler's method of k-diffusion, around its wrapper of an eps network."""
    sampling = k_diffusion_sampling()
    from k_diffusion import external

    betas = torch.linspace(1e-4, 0.02, 1000)
    inner = Constant(batch)
    inner.apply_model = inner.forward
    model = external.DiscreteEpsDDPMDenoiser(inner, (1 - betas).cumprod(0), True)

    @torch.no_grad()
    def once() -> None:
        sigmas = model.get_sigmas(steps)
        x = torch.randn(batch, *SHAPE) * sigmas[0]
        sampling.sample_euler(model, x, sigmas, disable=True)

    return once
