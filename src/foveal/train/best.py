"""A run's scores -> which of its checkpoints is the best; nothing is written down twice."""

import math
from collections.abc import Mapping
from pathlib import Path

from foveal.storage import read_object
from foveal.train.checkpoint import checkpoints, step_of

LOWER_IS_BETTER = ("distance", "error", "loss", "perplexity")
"""Last words of the names of metrics that should be small; all others should be large."""


def best_checkpoint(run: Path, metric: str) -> Path | None:
    """Find the checkpoint with the best score, of those evaluated; the earliest of equals.

    Derived from `evaluation/step-N/scores.json`, which is whole or not there, so that a kill at
    any instant leaves nothing to disagree about.

    Args:
        run: folder of the run.
        metric: a name in its scores.json.

    Returns:
        None where no checkpoint that stands has such a score.
    """
    standing = {step_of(one): one for one in checkpoints(run / "checkpoints")}
    scored = {step: _score(run / "evaluation" / one.name, metric) for step, one in standing.items()}
    last = max(standing, default=0)
    if standing and scored[last] is None:
        scored[last] = _score(run / "evaluation" / "after", metric)  # a finished run's last step
    best = _best_step(scored, metric)
    return None if best is None else standing[best]


def explain_stall(run: Path, metric: str, evaluations: int, step: int) -> str:
    """Say that a score has not become better for some evaluations in a row; empty: it has.

    Derived as the best checkpoint is, from the scores of the steps up to this one: a resumed run
    ends at the step at which an uninterrupted one does.

    Args:
        run: its folder.
        metric: a name in its scores.json.
        evaluations: how many in a row are too many.
        step: steps taken.
    """
    names = ((one.name.removeprefix("step-"), one) for one in run.glob("evaluation/step-*"))
    steps = {int(name): one for name, one in names if name.isdigit()}
    scored = {at: _score(one, metric) for at, one in steps.items() if at <= step}
    best = _best_step(scored, metric)
    if (
        best is None
        or sum(at > best for at, one in scored.items() if one is not None) < evaluations
    ):
        return ""
    return (
        f"Ended at step {step}: no {metric} in {evaluations} evaluations was better than "
        f"{scored[best]:.3f} at step {best}"
    )


def _best_step(scored: Mapping[int, float | None], metric: str) -> int | None:
    sign = -1.0 if metric.endswith(LOWER_IS_BETTER) else 1.0
    known = [(sign * one, -step) for step, one in scored.items() if one is not None]
    return -max(known)[1] if known else None  # as good is not better


def _score(evaluation: Path, metric: str) -> float | None:
    score = read_object(evaluation / "scores.json").get(metric)
    value = score.get("value") if isinstance(score, dict) else None
    return value if isinstance(value, float | int) and math.isfinite(value) else None
