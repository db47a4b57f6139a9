"""Where a test is run: on the processor always, on a GPU where `make gpu` shows it one."""

from collections.abc import Iterable
from typing import Any

import pytest

CPU, CUDA = "cpu", "cuda"
GPU_ALONE = pytest.param(CUDA, marks=pytest.mark.gpu)
DEVICES = [CPU, GPU_ALONE]


def places(here: Iterable[str], there: Iterable[str]) -> list[Any]:
    """Pair each device with what is tried on it: parameters that are (device, what) each."""
    made = [pytest.param((CPU, what), id=f"{CPU}-{what}") for what in here]
    made += [
        pytest.param((CUDA, what), id=f"{CUDA}-{what}", marks=pytest.mark.gpu) for what in there
    ]
    return made
