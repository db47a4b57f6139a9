"""Which cases of a test are run each day: the others are marked slow, and run before a release."""

import pytest


def daily(*names, beside=()):
    """List cases: those that are run each day, and `beside` them the slow ones.

    A case of several values is a tuple.
    """
    return [
        *names,
        *(
            pytest.param(*(one if isinstance(one, tuple) else (one,)), marks=pytest.mark.slow)
            for one in beside
        ),
    ]
