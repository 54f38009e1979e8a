"""Training steps of the other packages, each as its own example writes it."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from subjects.memory import KEPT, MOST, Peak, kept

SHAPE = (3, 32, 32)
Once = Callable[[], dict[str, float] | None]


def diffusers_network(small: bool = False) -> nn.Module:
    """The network of google/ddpm-cifar10-32, with the paper's dropout."""
    from diffusers import UNet2DModel

    return UNet2DModel(
        sample_size=SHAPE[-1],
        block_out_channels=(32,) * 4 if small else (128, 256, 256, 256),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", *["DownBlock2D"] * 2),
        up_block_types=(*["UpBlock2D"] * 2, "AttnUpBlock2D", "UpBlock2D"),
        dropout=0.1,
    )


def diffusers(
    batch: int = 8,
    tuned: bool = False,
    bf16: bool = False,
    recompute: bool = False,
    device: str = "cpu",
    channels_last: bool = False,
    small: bool = False,
    counted: bool = True,
) -> Once:
    """A step of diffusers' `train_unconditional` example.

    Tuned is the same with a fused optimiser and the average by one operation for all
    tensors: the best of what torch offers to whoever looks for it. Counted is with the
    megabytes it keeps of each image.
    """
    from diffusers import DDPMScheduler
    from diffusers.training_utils import EMAModel

    network, scheduler = diffusers_network(small).to(device).train(), DDPMScheduler()
    if channels_last:
        network.to(memory_format=torch.channels_last)
    if recompute:
        network.enable_gradient_checkpointing()
    weights = list(network.parameters())
    optimizer = torch.optim.AdamW(weights, lr=1e-4, fused=tuned)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    average = EMAModel(weights, use_ema_warmup=True, foreach=tuned)
    x0 = torch.rand(batch, *SHAPE, device=device) * 2 - 1

    def loss() -> Tensor:
        noise = torch.randn_like(x0)
        t = torch.randint(0, 1000, (batch,), device=device)
        x = scheduler.add_noise(x0, noise, t)
        with torch.autocast(x0.device.type, torch.bfloat16, enabled=bf16):
            out = network(x, t).sample
        return F.mse_loss(out.float(), noise)

    size = kept(loss, weights) / batch if counted else 0.0

    def once() -> dict[str, float] | None:
        loss().backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        rate.step()
        optimizer.zero_grad()
        average.step(weights)
        return {KEPT: size} if counted else None

    return once


def diffusers_most(**how: bool | int) -> Once:
    """The same step, and the megabytes that it and all before it needed at most."""
    for module in ("models.unets.unet_2d", "schedulers", "training_utils"):
        import_module(f"diffusers.{module}")  # so that it does not count
    before = Peak()
    step = diffusers(**how, counted=False)

    def once() -> dict[str, float]:
        step()
        return {MOST: before.megabytes()}

    return once


def diffusers_tail(small: bool = False) -> Once:
    """Optimiser and average of weights alone, as in its example."""
    from diffusers.training_utils import EMAModel

    weights = list(diffusers_network(small).parameters())
    for parameter in weights:
        parameter.grad = 1e-3 * torch.randn_like(parameter)
    optimizer = torch.optim.AdamW(weights, lr=1e-4)
    average = EMAModel(weights, use_ema_warmup=True)

    def once() -> None:
        optimizer.step()
        average.step(weights)

    return once


def torchcfm(batch: int = 8) -> Once:
    """A step of torchcfm's CIFAR-10 example; its network has the same size."""
    import copy

    from torchcfm.conditional_flow_matching import ConditionalFlowMatcher
    from torchcfm.models.unet.unet import UNetModelWrapper

    network = UNetModelWrapper(
        dim=SHAPE,
        num_res_blocks=2,
        num_channels=128,
        channel_mult=[1, 2, 2, 2],
        num_heads=4,
        num_head_channels=64,
        attention_resolutions="16",
        dropout=0.1,
    )
    average, matcher = copy.deepcopy(network), ConditionalFlowMatcher(sigma=0.0)
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-4)
    x1 = torch.rand(batch, *SHAPE) * 2 - 1

    def once() -> None:
        optimizer.zero_grad()
        t, x, u = matcher.sample_location_and_conditional_flow(torch.randn_like(x1), x1)
        torch.mean((network(t, x) - u) ** 2).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        mine, kept = network.state_dict(), average.state_dict()
        for name in mine:
            kept[name].data.copy_(kept[name].data * 0.9999 + mine[name].data * 1e-4)

    return once


def lucidrains(batch: int = 8) -> Once:
    """A step of denoising-diffusion-pytorch; its network is of another shape."""
    from denoising_diffusion_pytorch import GaussianDiffusion, Unet
    from ema_pytorch import EMA

    network = Unet(dim=128, dim_mults=(1, 2, 2, 2), dropout=0.1)
    diffusion = GaussianDiffusion(network, image_size=SHAPE[-1], timesteps=1000)
    optimizer = torch.optim.Adam(diffusion.parameters(), lr=1e-4, betas=(0.9, 0.99))
    average = EMA(diffusion, beta=0.995, update_every=10)
    images = torch.rand(batch, *SHAPE)

    def once() -> None:
        diffusion(images).backward()
        nn.utils.clip_grad_norm_(diffusion.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.update()

    return once
