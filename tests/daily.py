"""Which cases of a test are run each day: the others are marked slow, and run before a release."""

import pytest


def daily(*names, beside=()):
    """List cases: those that are run each day, and `beside` them the slow ones."""
    return [*names, *(pytest.param(name, marks=pytest.mark.slow) for name in beside)]
