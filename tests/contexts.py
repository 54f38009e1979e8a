"""What guidance finds in the place where it is built, from dictionaries."""

from __future__ import annotations

from diffusion_cli.denoiser import Context
from diffusion_cli.errors import ConfigError


class Stub(Context):
    """Models by the name of their run, samples by their path."""

    def __init__(self, models=None, samples=None):
        self.models, self.paths = models or {}, samples or {}

    def model(self, run):
        return self.models[run]

    def samples(self, path):
        return self.paths[path]

    def fitted(self, name):
        raise ConfigError(f"nothing was fitted for {name}")

    def tuned(self, steps):
        raise ConfigError(f"nothing was tuned for {steps}")

    def recorded(self, name):
        raise ConfigError(f"nothing was recorded of {name}")
