"""Trained models, and the place where parts are built: other runs, files, fits."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from diffusion_cli import assemble
from diffusion_cli.artifact import broken
from diffusion_cli.checkpoint import Checkpoint, load
from diffusion_cli.core import Spec
from diffusion_cli.datasets import Dataset, datasets
from diffusion_cli.denoiser import Context, Model
from diffusion_cli.derived import Derived
from diffusion_cli.device import autocast, memory, precision
from diffusion_cli.errors import CheckpointError, ConfigError
from diffusion_cli.identity import dotted, identity
from diffusion_cli.paths import assignment, typed
from diffusion_cli.registry import ROLES, near
from diffusion_cli.tracking import say

TRAINED = ("process", "parametrisation", "network")  # what the weights depend on


def trained(
    found: Checkpoint,
    weights: str = "ema",
    device: torch.device | None = None,
    network_precision: str = "auto",
) -> Model:
    """The model of a checkpoint: frozen, in evaluation mode, on its device."""
    device = device or torch.device("cpu")
    config = dict(found.config)
    for role in TRAINED:
        config[role] = stored(found, role, config.get(role))
    model = _model(found, config)
    found.load_model(model, weights)
    model.onto(device).eval().requires_grad_(False)
    model.around = autocast(device, precision(device, network_precision))
    return model


def differences(source: Checkpoint, config: Mapping[str, Any]) -> list[str]:
    """What a run that starts from others' weights reads in another way.

    A head beside a mean that other weights predict would learn nonsense: that is a
    `ConfigError`.
    """
    told = []
    for role in ("process", "parametrisation"):
        then, now = source.config.get(role, {}), config[role]
        mean = now.get("mean")
        if isinstance(mean, Mapping) and "mean" not in then:
            if mean != then:
                name = then.get("name")
                message = f"init: {source.home} predicts `{name}`; parametrisation.mean"
                hint = f"parametrisation.mean.name={name}"
                raise ConfigError(f"{message} reads `{mean['name']}`", hint)
        elif then != now:
            told.append(f"that run has another {role}, {dotted(then)}")
    return told


def kind(found: Checkpoint) -> type[Dataset]:
    """The class of the data the model was trained on; the data itself is not opened."""
    node = found.config.get("dataset")
    name = node.get("name") if isinstance(node, Mapping) else None
    if name not in datasets.names():
        message = f"{found.folder}: uses dataset `{name}`, which is not installed"
        hint = f"plugins=[...]{near(str(name), datasets.names())}"
        raise CheckpointError(message, hint, "CKPT-PLUGIN")
    return datasets[str(name)]


class Place(Context):
    """Where parts are built: beside which data, for which checkpoint.

    Args:
        kind: Class of the data set, which reads samples from files.
        spec: What a sample looks like.
        device: Where models and samples are to be.
        found: The checkpoint that is sampled; None while a run is trained.
        weights: Which of its weights.

    `models` are those of other runs, `used` the fingerprints of all that was asked for,
    `walk` the nodes of the sampler and the guidance that are built.
    """

    def __init__(
        self,
        kind: type[Dataset],
        spec: Spec,
        device: torch.device,
        found: Checkpoint | None = None,
        weights: str = "ema",
    ) -> None:
        self.kind, self.spec, self.device = kind, spec, device
        self.found, self.weights = found, weights
        self.models: list[Model] = []
        self.used: dict[str, str] = {}
        self.walk: dict[str, Any] = {}

    def model(self, run: str) -> Model:
        try:
            found = load(run)
        except CheckpointError as error:
            error.message = error.message.replace("ckpt:", "run:", 1)
            raise
        self.used[run] = found.hash
        say(f"another run: {found.folder}")
        self.models.append(trained(found, device=self.device))
        return self.models[-1]

    def samples(self, path: str) -> Tensor:
        x = self.kind.load(typed(path, "path"), self.spec)
        self.used[path] = fingerprint(x)
        say(f"{len(x)} samples read from {path}")
        return x.to(self.device)

    def prompt(self, text: str, mask: str) -> Tensor:
        return self.kind.prompt(text, self.spec, mask).to(self.device)

    def fitted(self, name: str, by: str) -> Mapping[str, Tensor]:
        found = self._sampled(f"what `dcli {by}` finds")
        values = Derived(found, self.weights).read(name)
        if values is None:
            message = f"{found.home}: nothing was found yet for `{name}`"
            run = shlex.quote(str(found.home)) + f" weights={self.weights}" * (
                self.weights != "ema"
            )
            raise ConfigError(message, f"dcli {by.replace('RUN', run)}")
        self.used[name] = fingerprint(*values.values())
        return {key: value.to(self.device) for key, value in values.items()}

    def tuned(self, steps: int) -> Mapping[str, Tensor]:
        self._sampled("a tuned grid")
        by = f"tune ckpt=RUN steps={steps} {self.spelled()}"
        return self.fitted(self.grid(steps), by)

    def grid(self, steps: int) -> str:
        """The name of what is tuned for this sampler, guidance and number of steps."""
        walk = {**self.walk["sampler"], "grid": "tuned", "steps": steps}
        tag = identity({**self.walk, "sampler": walk})
        return f"grid-{walk['name']}-{steps}-{tag}"

    def spelled(self) -> str:
        """This sampler and guidance as arguments, but for steps and grid."""
        sampler, guidance = self.walk["sampler"], self.walk["guidance"]
        name = sampler["name"]
        usual, _ = ROLES["sampler"].check({"name": name}, "sampler")
        left = {"name", "steps", "grid"} | {k for k in usual if usual[k] == sampler[k]}
        own = {key: value for key, value in sampler.items() if key not in left}
        words = [f"sampler={name}", *_words("sampler", own)]
        nodes = guidance if isinstance(guidance, list) else [guidance or {}]
        if names := [node["name"] for node in nodes if node]:
            words.append(f"guidance={','.join(names)}")
        for node in nodes:
            key = "guidance" if len(nodes) == 1 else f"guidance.{node['name']}"
            words += _words(key, {k: v for k, v in node.items() if k != "name"})
        return " ".join(words)

    def recorded(self, name: str) -> Tensor:
        found = self._sampled(f"the objective's `{name}`")
        values = found.tensors("objective")
        if name not in values:
            message = f"{found.home}: training recorded no `{name}`"
            raise ConfigError(message, "train it with objective.name=denoise")
        self.used[name] = fingerprint(values[name])
        return values[name].to(self.device)

    def _sampled(self, what: str) -> Checkpoint:
        if self.found is None:
            message = f"{what} belongs to a trained run"
            raise ConfigError(message, "leave it out of `dcli train`; dcli sample ...")
        return self.found


def _words(key: str, node: Mapping[str, Any]) -> Iterator[str]:
    """The values of a node as arguments."""
    for inner, value in dotted(node, f"{key}.").items():
        if isinstance(value, str):
            yield assignment(inner, value)
        else:
            yield shlex.quote(f"{inner}={json.dumps(value)}")


def fingerprint(*tensors: Tensor) -> str:
    """Sixteen digits that tell other values from these."""
    sha = hashlib.sha256()
    for tensor in tensors:
        sha.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return sha.hexdigest()[:16]


def stored(found: Checkpoint, role: str, node: Any) -> dict[str, Any]:
    """A node of the checkpoint's config, checked like one that a user typed."""
    registry = ROLES[role]
    name = node.get("name") if isinstance(node, Mapping) else None
    if isinstance(name, str) and name not in registry.names():
        trained = found.config.get("plugins") or []
        hint = "install the package that it comes from"
        if trained:
            listed = ",".join(str(plugin) for plugin in trained)
            hint = (
                f"it was trained with plugins=[{listed}]; "
                "pass that again if you trust the file"
            )
        message = f"{found.folder}: uses {role} `{name}`, which is not installed"
        raise CheckpointError(message, hint, "CKPT-PLUGIN")
    values, errors = registry.check(node, role)
    if errors:
        text = "; ".join(error.message for error in errors)
        hint = f"take another step of {found.home}, or another run"
        raise CheckpointError(f"{found.folder}: {text}", hint, "CKPT-CORRUPT")
    return values


def _model(found: Checkpoint, config: Mapping[str, Any]) -> Model:
    """The model as the config says; whatever else its author wrote, it is refused."""
    seed, objective = config.get("seed"), config.get("objective")
    if not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise broken(found.folder, f"manifest.json: seed is {seed!r}")
    if not isinstance(objective, Mapping):
        raise broken(found.folder, f"manifest.json: objective is {objective!r}")
    try:
        with memory("sample: the model", "device=<another>"):
            return assemble.model(config, found.spec)
    except (ConfigError, ArithmeticError, RuntimeError, TypeError, ValueError) as error:
        what = f"the model cannot be built: {str(error).strip().splitlines()[0]}"
        raise broken(found.folder, what) from error
