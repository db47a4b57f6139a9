"""The command line: one command per verb, each a few lines around one function."""

from foveal.cli import data, learning, models, recipes  # noqa: F401  # their commands join
from foveal.cli.front import app, main

__all__ = ["app", "main"]
