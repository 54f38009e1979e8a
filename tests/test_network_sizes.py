"""The layers of the networks, their published sizes, and what they refuse."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from diffusion_cli.core import Spec
from diffusion_cli.errors import ConfigError
from diffusion_cli.networks import networks
from diffusion_cli.networks.blocks import Attention, group_norm, sinusoids

CONFIGS = Path(__file__).parents[1] / "configs" / "network"
IMAGE = Spec((3, 8, 8))


@pytest.mark.parametrize("backend", [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION])
@pytest.mark.parametrize("tokens", [1, 49, 64, 200])
def test_attention_is_softmax_of_the_products(backend: SDPBackend, tokens: int) -> None:
    torch.manual_seed(0)
    attention = Attention(24, heads=3, last=nn.Linear(24, 24))
    x = torch.randn(2, tokens, 24)
    with sdpa_kernel(backend):
        output = attention(x)
    q, k, v = (
        part.reshape(2, tokens, 3, 8).transpose(1, 2)
        for part in attention.qkv(x).chunk(3, dim=2)
    )
    weights = torch.softmax(q @ k.transpose(2, 3) / 8**0.5, dim=3)
    explicit = attention.last((weights @ v).transpose(1, 2).reshape(2, tokens, 24))
    torch.testing.assert_close(output, explicit, rtol=0, atol=1e-5)


def test_level_is_embedded_as_the_step_of_ddpm() -> None:
    step = torch.tensor([0.0, 1.0, 500.0, 999.0])
    waves = sinusoids(step, 128)
    frequency = 10_000 ** (-torch.arange(64, dtype=torch.float64) / 63)
    angle = step.double()[:, None] * frequency
    exact = torch.cat([angle.sin(), angle.cos()], dim=1)
    torch.testing.assert_close(waves.double(), exact, rtol=0, atol=1e-3)
    assert sinusoids(step.bfloat16(), 8).dtype == torch.float32


@pytest.mark.parametrize("channels", [1, 2, 6, 30, 48, 100, 128, 256])
def test_groups_divide_the_channels(channels: int) -> None:
    norm = group_norm(channels)
    assert channels % norm.num_groups == 0
    assert norm.num_groups <= 32
    assert norm(torch.randn(2, channels, 3, 3)).isfinite().all()


def count(config: str, state: Spec, out: tuple[int, ...]) -> int:
    values = yaml.safe_load((CONFIGS / f"{config}.yaml").read_text())
    with torch.device("meta"):
        network = networks.build(values, state=state, out=out)
    return sum(parameter.numel() for parameter in network.parameters())


def test_published_sizes() -> None:
    cifar = Spec((3, 32, 32))
    assert count("unet", cifar, cifar.shape) == 35_746_307  # Ho et al. 2020
    latent = Spec((4, 32, 32), classes=1000)
    # The published 32,963,360 count the fixed positions, 256 x 384, as parameters; the
    # second read-out has a hidden layer here.
    published = 32_963_360 - 256 * 384
    assert count("dit_s2", latent, (8, 32, 32)) == published + 384 * 385


@pytest.mark.parametrize(
    ("config", "shape", "most"),
    [
        ("unet_digits", (1, 8, 8), 1.5e6),
        ("unet_mnist", (1, 28, 28), 2.5e6),
        ("dit_tiny", (3, 32, 32), 6e6),
        ("mlp", (2,), 1.5e6),
    ],
)
def test_small_configs_are_small(
    config: str, shape: tuple[int, ...], most: float
) -> None:
    assert count(config, Spec(shape, classes=10), shape) < most


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda p: p.stem)
def test_configs_fit_the_constructors_and_cite_a_source(path: Path) -> None:
    values = yaml.safe_load(path.read_text())
    _, errors = networks.check(values, "network")
    assert not errors
    assert path.read_text().startswith("#") and "arXiv:" in path.read_text()


def test_unet_defaults_are_the_published_network() -> None:
    published = yaml.safe_load((CONFIGS / "unet.yaml").read_text())
    defaults, _ = networks.check({"name": "unet"}, "network")
    listed = {k: list(v) if isinstance(v, tuple) else v for k, v in defaults.items()}
    assert published == listed


@pytest.mark.parametrize("sides", [(28, 28), (8, 12), (4, 64)])
def test_unet_takes_every_size_its_levels_halve(sides: tuple[int, int]) -> None:
    state = Spec((1, *sides))
    own = {"channels": 8, "multipliers": (1, 1, 2), "blocks": 1}
    network = networks.build({"name": "unet", **own}, state=state, out=state.shape)
    assert network(torch.zeros(2, *state.shape), torch.zeros(2)).shape[2:] == sides


@pytest.mark.parametrize(
    ("own", "state", "says"),
    [
        ({"name": "unet"}, Spec((1, 28, 28)), "at most 3 levels for images of 28x28"),
        ({"name": "unet", "multipliers": ()}, IMAGE, "one number >= 1"),
        ({"name": "unet"}, Spec((2,)), "network=mlp"),
        ({"name": "unet"}, Spec((8,), "tokens", vocab=4), "network.state"),
        ({"name": "unet", "heads": 3}, IMAGE, "network.heads: must be a divisor"),
        ({"name": "unet", "dropout": 1.0}, IMAGE, "network.dropout"),
        ({"name": "unet", "channels": 7}, IMAGE, "network.channels: must be even"),
        ({"name": "dit", "patch": 3}, IMAGE, "network.patch: must be a divisor"),
        ({"name": "dit", "heads": 5}, IMAGE, "a divisor of width=384, got 5"),
        ({"name": "dit"}, Spec((2,)), "network=mlp"),
        ({"name": "mlp", "fourier": -1}, IMAGE, "network.fourier: must be >= 0"),
        ({"name": "mlp"}, Spec((8,), "tokens", vocab=4), "network.state"),
    ],
)
def test_refusals_say_what_would_work(
    own: dict[str, Any], state: Spec, says: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        networks.build(own, state=state, out=state.shape)
    assert says in refused.value.message


@pytest.mark.parametrize("name", ["unet", "dit"])
def test_outputs_of_another_size_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"network\.out: must be"):
        networks.build({"name": name}, state=IMAGE, out=(3, 4, 4))
