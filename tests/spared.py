"""What short runs are spared, since it takes longer than they do and has tests of its own."""

import pytest

CHARTS, RECOMPUTE = "report", "plan"
"""The folders of tests that are about them."""


def spare(patch: pytest.MonkeyPatch, folder: str = "") -> None:
    """Leave charts undrawn, and models unasked what they keep: nothing is made again.

    Args:
        patch: that is undone at the end.
        folder: of the tests, below this one.
    """
    from foveal import run
    from foveal.report import charts

    if folder != CHARTS:
        patch.setattr(charts, "draw", lambda name, *_, **__: f"<svg><title>{name}</title></svg>")
    if folder != RECOMPUTE:
        patch.setattr(run, "choose_recompute", _as_told)


def _as_told(recipe, *_):
    told = recipe.train.recompute
    return "none" if told == "auto" else told
