"""A run's scores -> which of its checkpoints is the best; nothing is written down twice."""

import json
import math
from pathlib import Path

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


def _score(evaluation: Path, metric: str) -> float | None:
    try:
        value = json.loads((evaluation / "scores.json").read_text(encoding="utf-8"))[metric][
            "value"
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return value if isinstance(value, float | int) and math.isfinite(value) else None
