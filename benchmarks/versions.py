"""Nothing -> the versions that a measurement was made with."""

import platform
from importlib.metadata import PackageNotFoundError, version

MEASURED = (
    "foveal",
    "torch",
    "transformers",
    "trl",
    "accelerate",
    "peft",
    "datasets",
    "tokenizers",
    "numpy",
    "pillow",
)
"""Packages whose version may change a speed."""


def versions() -> dict[str, str]:
    """Look up Python and every package; one that is missing is said to be."""
    found = {"python": platform.python_version()}
    for name in MEASURED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
