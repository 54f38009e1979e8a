"""All that changes while training, and its plain form for a checkpoint."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from diffusion_cli.checkpoint import fill
from diffusion_cli.denoiser import Model
from diffusion_cli.ema import Average
from diffusion_cli.errors import CheckpointError, DcliError
from diffusion_cli.latch import Latch
from diffusion_cli.objectives import Objective
from diffusion_cli.tensorfile import DTYPES


@dataclass
class State:
    """What a step changes. Of the latch, the count travels in the checkpoint.

    Args:
        averages: The first is sampled from.
        scaler: Only in fp16.
        step: Number of steps done.
    """

    model: Model
    objective: Objective
    optimizer: Optimizer
    averages: list[Average]
    scaler: torch.amp.GradScaler | None
    latch: Latch
    step: int = 0

    def tensors(self) -> dict[str, Mapping[str, Tensor]]:
        """Tensors by file and name."""
        own = {average.name: average.tensors for average in self.averages}
        moments = {
            f"{name}/{key}": value
            for name, values in self._moments().items()
            for key, value in values.items()
        }
        return {
            "model": self.model.state_dict(),
            **own,
            "objective": self.objective.state_dict(),
            "optimizer": moments,
        }

    def plain(self) -> dict[str, Any]:
        """Everything else, as JSON can hold it."""
        scaler = None if self.scaler is None else self.scaler.state_dict()
        skipped = int(self.latch.skipped.item())
        return {"step": self.step, "scaler": scaler, "skipped": skipped}

    def demand_savable(self) -> None:
        """Refuse what no checkpoint can hold, before much is trained (`DcliError`)."""
        for file, group in self.tensors().items():
            for name, value in group.items():
                dtype = value.dtype if isinstance(value, Tensor) else type(value)
                if dtype not in DTYPES:
                    what = f"{file}: `{name}` cannot be saved: {dtype}"
                    hint = "keep it as a tensor of real numbers, or compute it again"
                    raise DcliError(what, hint, "UNSAVABLE")

    @torch.no_grad()
    def restore(
        self, read: Callable[[str], Mapping[str, Tensor]], plain: Mapping[str, Any]
    ) -> None:
        """Take back what `tensors` and `plain` gave (`CheckpointError`)."""
        fill(self.model, read("model"), "model")
        fill(self.objective, read("objective"), "objective")
        for average in self.averages:
            saved = read(average.name)
            if saved.keys() != average.tensors.keys():
                raise CheckpointError(f"{average.name}: the average is missing")
            for name, tensor in average.tensors.items():
                tensor.copy_(saved[name])
        self._restore_moments(read("optimizer"))
        self.step = int(plain["step"])
        if not 0 <= self.step < 2**63:
            raise ValueError(f"step {self.step}")
        skipped = int(plain.get("skipped", 0))  # a key that early checkpoints lack
        self.latch.skipped.fill_(max(0, min(skipped, self.latch.allowed)))
        if self.scaler is not None:
            if plain["scaler"] is None:
                raise CheckpointError("state.json: the fp16 scaler state is missing")
            self.scaler.load_state_dict(plain["scaler"])

    @contextmanager
    @torch.no_grad()
    def averaged(self, weights: str = "ema") -> Iterator[Model]:
        """The model in evaluation mode for a while, its first average as weights.

        Args:
            weights: `raw` leaves the weights as they are.
        """
        swapped = self.averages[0] if self.averages and weights == "ema" else None
        kept = {n: w.clone() for n, w in swapped.weights.items()} if swapped else {}
        self.model.eval()
        try:
            for name in kept:
                assert swapped is not None
                swapped.weights[name].copy_(swapped.tensors[name])
            yield self.model
        finally:
            for name, weight in kept.items():
                assert swapped is not None
                swapped.weights[name].copy_(weight)
            self.model.train()

    def _names(self) -> list[str]:
        """Names of the trained tensors in the order in which the optimiser counts."""
        modules = (("model", self.model), ("objective", self.objective))
        names = {
            parameter: f"{where}.{name}"
            for where, module in modules
            for name, parameter in module.named_parameters()
        }
        groups = self.optimizer.param_groups
        return [names[p] for group in groups for p in group["params"]]

    def _moments(self) -> dict[str, dict[str, Tensor]]:
        saved = self.optimizer.state_dict()["state"]
        names = self._names()
        return {
            names[index]: {k: v for k, v in values.items() if v is not None}
            for index, values in saved.items()
        }

    def _restore_moments(self, saved: Mapping[str, Tensor]) -> None:
        groups = self.optimizer.param_groups
        order = [p for group in groups for p in group["params"]]
        weights = dict(zip(self._names(), order, strict=True))
        values: dict[str, dict[str, Tensor]] = defaultdict(dict)
        for path, tensor in saved.items():
            name, _, key = path.rpartition("/")
            own = weights[name]
            like = own if own.shape == tensor.shape else tensor
            # fused kernels want the strides of the weight (channels_last)
            copy = torch.empty_like(like, dtype=tensor.dtype, device=own.device)
            values[name][key] = copy.copy_(tensor)
        whole = self.optimizer.state_dict()
        whole["state"] = {
            index: values[name]
            for index, name in enumerate(self._names())
            if name in values
        }
        self.optimizer.load_state_dict(whole)
