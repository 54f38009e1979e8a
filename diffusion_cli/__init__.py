"""One command line for every diffusion-type model: `dcli train`, `dcli sample`."""

__version__ = "0.1.0"
