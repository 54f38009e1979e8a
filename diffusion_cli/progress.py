"""Measuring while a run trains: numbers, the best checkpoint, the wish to stop."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch

from diffusion_cli import checkpoint, records, trial
from diffusion_cli.evaluation import Trained, demands, several
from diffusion_cli.identity import same_data
from diffusion_cli.metrics import metrics
from diffusion_cli.processes import Process
from diffusion_cli.run_folder import RunFolder
from diffusion_cli.settings import Evaluation
from diffusion_cli.stop import Stop
from diffusion_cli.tracking import say
from diffusion_cli.world import World

Config = dict[str, Any]
AS_TRAINED: Config = dict.fromkeys(("dataset", "sampler", "guidance", "steps", "label"))


class Judge:
    """Measures checkpoints of a run as `dcli eval` would, and remembers the best.

    Args:
        config: The run's.
        folder: The run's.
        device: Where to compute.
        stop: Asked between batches.
        world: The processes that share the samples.
    """

    def __init__(
        self,
        config: Config,
        folder: RunFolder,
        device: torch.device,
        stop: Stop,
        world: World,
    ) -> None:
        self.settings = Evaluation(**config["evaluation"])
        self.every = int(config["every"]["eval"])
        self.tired = False  # whether patience is at its end
        self.given_up = False  # whether a search wants no more of it
        self.fresh = True  # whether something was measured since it was asked
        self.folder, self.device, self.stop, self.world = folder, device, stop, world
        self.values: Config = {
            **AS_TRAINED,
            **config["evaluation"],
            "metric": config["metric"],
            "features": config["features"],
            "seed": config["seed"],
            "precision": "auto",
            "dtype": "float32",
            "graphs": False,  # the memory is the run's
        }
        self.data: Config = config["dataset"]
        self.nodes = several(self.values) if config["metric"] else []

    def suit(self, process: Process) -> None:
        """Refuse metrics that the run's process does not suit."""
        for node in self.nodes:
            demands(node, process)

    def due(self, step: int, last: bool) -> bool:
        """Whether to measure after this step; always after the last."""
        return bool(self.nodes and self.every) and (last or step % self.every == 0)

    def missed(self, step: int) -> bool:
        """Whether a run that goes on from here was killed before it was measured."""
        known = [0, *(at for at, _ in self.history())]
        return self.due(step, False) and self.world.agree(int(step not in known)) > 0

    def measure(self, step: int) -> tuple[dict[str, float], dict[str, Config]]:
        """Every number of a step's checkpoint, and the protocol of every metric.

        Both as `metrics.jsonl` has them: numbers by name, protocols by metric.
        """
        found = checkpoint.load(self.folder.checkpoints / f"step_{step:08d}")
        place = (self.device, self.stop)
        subject = Trained(found, self.values, *place, world=self.world, training=True)
        numbers: dict[str, float] = {}
        about: dict[str, Config] = {}
        for node in self.nodes:
            name, result = node["name"], subject.measure(node)
            about[name] = {**self._told(node), "protocol": result.protocol}
            for key, value in result.values.items():
                numbers[key if key.startswith(name) else f"{name}_{key}"] = value
        self.world.once(subject.forget)
        first = next(iter(numbers.values()))
        hopeless = self.world.rank == 0 and trial.hopeless(step, first)
        self.given_up = self.world.agree(int(hopeless)) > 0
        told = "  ".join(f"{key} {value:.5g}" for key, value in numbers.items())
        say(f"step {step}  {told}")
        self.fresh = True
        return numbers, about

    def _told(self, node: Config) -> Config:
        """What decides a number of this run besides the weights and the seed."""
        data = same_data(self.data)
        rest = {key: self.values[key] for key in ("nfe", "weights")}
        told: Config = json.loads(json.dumps({"metric": node, "dataset": data, **rest}))
        return told

    def history(self) -> list[tuple[int, float]]:
        """The steps measured so far with their first number, smaller is better.

        Only numbers under the protocol of now: what was measured otherwise, before a
        key was changed, is no better and no worse.
        """
        if not self.nodes:
            return []
        name, told = self.nodes[0]["name"], self._told(self.nodes[0])
        sign = -1 if metrics[name].higher else 1
        found: list[tuple[int, float, str]] = []
        for line in records.lines(self.folder.path / "metrics.jsonl"):
            about = dict(line.get("measured", {}).get(name, {}))
            word = about.pop("protocol", "")
            own = [k for k in line if k.startswith(name) and records.finite(line[k])]
            if own and about == told:
                found.append((int(line["step"]), sign * float(line[own[0]]), word))
        return [(step, value) for step, value, word in found if word == found[-1][2]]

    def best(self) -> int | None:
        """The step with the best number so far, if its checkpoint is to stay."""
        return best(self.history()) if self.settings.best else None

    def weary(self) -> bool:
        """Whether nothing got better for as long as patience lasts, on any rank."""
        if self.fresh and self.every and self.settings.patience:
            seen = self.history()
            since = sum(step > (best(seen) or 0) for step, _ in seen)
            self.tired = self.world.agree(int(since >= self.settings.patience)) > 0
            self.fresh = False
        return self.tired or self.given_up

    @property
    def ended(self) -> tuple[str, str] | None:
        """Why the run ended before its last step, and what goes on with it."""
        if self.tired:
            return "stopped early", "evaluation.patience=null goes on"
        if self.given_up:
            return "given up by the search", "the same command without -m goes on"
        return None

    def worth(self, loss: float | None) -> float | None:
        """What the run is worth to a search: its best first number, else its loss."""
        if not self.nodes or not (seen := self.history()):
            return loss
        sign = -1 if metrics[self.nodes[0]["name"]].higher else 1
        return sign * min(value for _, value in seen)


def best(history: Sequence[tuple[int, float]]) -> int | None:
    """The first step with the smallest number."""
    return min(history, key=lambda seen: (seen[1], seen[0]))[0] if history else None
