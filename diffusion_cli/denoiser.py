"""Denoisers: beliefs about clean data; `Model` is the one that a run trains."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from diffusion_cli.core import Posterior, Spec
from diffusion_cli.errors import ConfigError
from diffusion_cli.networks import Network, networks
from diffusion_cli.parametrisations import Parametrisation
from diffusion_cli.processes import Process


class Denoiser(nn.Module, ABC):
    """A belief about x_0 for every state, time and condition."""

    process: Process
    needs: type[Process] = Process  # what a guidance asks of the process
    labelled: bool = False  # whether a guidance asks for labels that can be left out
    tilts: bool = False  # whether it only acts on steps that draw: `Posterior.tilt`
    varies: bool = False  # whether it only sets a variance, for the process's own steps
    timeless: bool = False  # whether its belief is the same at all times

    @abstractmethod
    def forward(self, x: Tensor, t: Tensor, **cond: Tensor) -> Posterior:
        """q(x_0 | x_t); `t` is () or (B,), conditions have one row per sample.

        A sampling command binds `rows` too, the index of every sample: int64 (B,).
        """

    def given(self, **cond: Tensor) -> Denoiser:
        """The same belief with conditions bound, so that samplers never see them."""
        return _Given(self, cond) if cond else self


class _Given(Denoiser):
    def __init__(self, inner: Denoiser, cond: dict[str, Tensor]) -> None:
        super().__init__()
        self.inner, self.cond, self.process = inner, cond, inner.process
        self.timeless = inner.timeless

    def forward(self, x: Tensor, t: Tensor, **cond: Tensor) -> Posterior:
        return self.inner(x, t, **self.cond, **cond)  # type: ignore[no-any-return]


class Model(Denoiser):
    """A process, a network, and how the network's output is read.

    `around` is entered around the network alone (autocast); the state, the scaling and
    the read-out stay in float32 or float64.

    Args:
        spec: The data the model was built for.
    """

    def __init__(
        self,
        process: Process,
        network: Network,
        parametrisation: Parametrisation,
        spec: Spec,
    ) -> None:
        super().__init__()
        self.process, self.network = process, network
        self.parametrisation, self.spec = parametrisation, spec
        self.out = parametrisation.out(process.state(spec))  # shape asked for
        self.timeless = parametrisation.timeless
        self.around: Callable[[], AbstractContextManager[object]] = nullcontext

    def onto(self, device: torch.device) -> Model:
        """Move to a device, in the memory layout in which it is fastest there."""
        self.to(device)
        flat = all(weight.ndim < 5 for weight in self.network.parameters())
        if device.type == "cuda" and flat:
            self.network.to(memory_format=torch.channels_last)
        return self

    def forward(
        self, x: Tensor, t: Tensor, rows: Tensor | None = None, **cond: Tensor
    ) -> Posterior:
        return self.parametrisation.posterior(
            self.output(x, t, **cond), x, t, self.process
        )

    def output(self, x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        """The raw output F of the network, in the precision of `x`."""
        scaled, level = self.parametrisation.inputs(x, t, self.process)
        weight = next(self.network.parameters())
        if scaled.dtype.is_floating_point:
            scaled = _as(scaled, weight.dtype)
        if level.ndim == 0 and level.is_cpu:  # a fill, not a copy to the device
            level = weight.new_full(x.shape[:1], level.item())
        else:
            level = level.to(weight.device, weight.dtype)
            level = level if level.ndim else level.expand(x.shape[:1])
        with self.around():
            out = self.network(scaled, level, **cond)
        self.inspect(out, len(x))
        return _as(out, x.dtype if x.dtype.is_floating_point else torch.float32)

    def inspect(self, out: Tensor, count: int) -> None:
        """Refuse what a network returns in another shape than it was built for."""
        found = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        if found != (expected := (count, *self.out)):
            name = networks.name_of(self.network)
            message = f"network: `{name}` returned {found}, expected {expected}"
            raise ConfigError(message, "`forward` returns a batch of the shape `out`")


def _as(x: Tensor, dtype: torch.dtype) -> Tensor:
    """`x` in a precision; asked for at every step, and nearly always there."""
    return x if x.dtype == dtype else x.to(dtype)


class Context(ABC):
    """What a part may ask of the place where it is built; `ConfigError` if it is not.

    Guidance, grids and metrics name it in their constructors (`context`).
    """

    @abstractmethod
    def model(self, run: str) -> Model:
        """The trained, frozen model of a run, with its averaged weights."""

    @abstractmethod
    def samples(self, path: str) -> Tensor:
        """Clean samples from a file or a folder, (N, ...) in the range of the data."""

    @abstractmethod
    def fitted(self, name: str, by: str) -> Mapping[str, Tensor]:
        """What a command found for the weights at hand, by name.

        Args:
            name: What it is called beside the weights.
            by: The command, as `fit ckpt=RUN`, for whoever has not run it.
        """

    @abstractmethod
    def tuned(self, steps: int) -> Mapping[str, Tensor]:
        """What `dcli tune` found for the sampler and the guidance that are built."""

    @abstractmethod
    def recorded(self, name: str) -> Tensor:
        """A buffer of the objective as training left it."""

    def prompt(self, text: str, mask: str) -> Tensor:
        """The tokens of a text, (L,), -1 where it says `mask` and after its end."""
        raise ConfigError("prompt: there is no data here that could read it")
