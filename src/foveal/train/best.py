"""A run's scores -> which of its checkpoints is the best; nothing is written down twice."""

import math
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
    standing = checkpoints(run / "checkpoints")
    sign = -1.0 if metric.endswith(LOWER_IS_BETTER) else 1.0
    scored = []
    for place in standing:
        value = _score(run / "evaluation" / place.name, metric)
        if value is None and place == standing[-1]:
            value = _score(run / "evaluation" / "after", metric)  # a finished run's last step
        if value is not None:
            scored.append((sign * value, -step_of(place), place))
    return max(scored)[-1] if scored else None


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
    steps = {step_of(one): one for one in (run / "evaluation").glob("step-*") if _is_step(one)}
    sign = -1.0 if metric.endswith(LOWER_IS_BETTER) else 1.0
    values = {at: _score(steps[at], metric) for at in sorted(steps) if at <= step}
    known = {at: value for at, value in values.items() if value is not None}
    if not known:
        return ""
    best = max(known, key=lambda at: (sign * known[at], -at))  # as good is not better
    if sum(at > best for at in known) < evaluations:
        return ""
    return (
        f"Ended at step {step}: no {metric} in {evaluations} evaluations was better than "
        f"{known[best]:.3f} at step {best}"
    )


def _is_step(evaluation: Path) -> bool:
    return evaluation.name.removeprefix("step-").isdigit()


def _score(evaluation: Path, metric: str) -> float | None:
    score = read_object(evaluation / "scores.json").get(metric)
    value = score.get("value") if isinstance(score, dict) else None
    return value if isinstance(value, float | int) and math.isfinite(value) else None
