"""When scores of a written folder count as the run's own."""

import math

import pytest

from foveal.deliver.proof import compare_scores
from foveal.evaluate.intervals import Score

FOUND = {"anls": Score(0.8, 0.7, 0.9, 200)}


@pytest.mark.parametrize(
    ("value", "low", "high", "holds"),
    [
        (0.80, 0.75, 0.85, True),
        (0.75, 0.75, 0.85, True),
        (0.74, 0.75, 0.85, False),
        (0.86, 0.75, 0.85, False),
        (math.nan, 0.75, 0.85, False),
        # All 200 answers were right: the bootstrap sees no spread, yet 3 in 200 is within reason.
        (0.99, 1.0, 1.0, True),
        (0.98, 1.0, 1.0, False),
        (0.01, 0.0, 0.0, True),
    ],
)
def test_a_score_holds_within_the_runs_interval(value, low, high, holds):
    run = {"anls": Score((low + high) / 2, low, high, 200)}
    checks, _ = compare_scores({"anls": Score(value, 0.0, 1.0, 200)}, run)
    assert checks["anls"].holds == holds


def test_what_is_not_compared_is_named():
    assert compare_scores(FOUND, FOUND)[1] is None
    assert compare_scores({}, None) == ({}, "not compared, the recipe names no data.validation")
    more = FOUND | {"auroc": Score(0.9, 0.8, 1.0, 200)}
    assert compare_scores(FOUND, more)[1] == (
        "auroc is not compared, the recipe's evaluation does not give it"
    )
    longer = {"anls": Score(0.8, 0.7, 0.9, 220)}
    assert compare_scores(FOUND, longer)[1] == "anls has 200 answers, the run's had 220"
    none = {"anls": Score(math.nan, math.nan, math.nan, 0)}
    assert compare_scores(FOUND, none) == ({}, "anls has 200 answers, the run's had 0")


@pytest.mark.parametrize(
    ("run", "interval"),
    [
        (Score(0.0, 0.0, 0.0, 3), None),  # a margin of 3 / 3: nothing there is lies outside
        (Score(1.0, 1.0, 1.0, 2), None),
        (Score(0.5, 0.0, 1.0, 4), None),
        (Score(0.0, 0.0, 0.0, 4), (0.0, 0.75)),
        (Score(1.0, 1.0, 1.0, 300), (0.99, 1.0)),
        (Score(0.5, 0.5, 0.5, 12), (0.25, 0.75)),
    ],
)
def test_a_score_is_compared_only_where_it_could_fail(run, interval):
    checks, note = compare_scores({"anls": run}, {"anls": run})
    assert all(one.run == run.value for one in checks.values())
    assert [(one.low, one.high) for one in checks.values()] == ([interval] if interval else [])
    too_few = f"anls proves nothing, {run.count} answers are too few for an interval"
    assert note == (None if interval else too_few)
