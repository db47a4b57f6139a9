"""Fit what shapes cannot say on every other row of the published table; print all rows.

    python benchmarks/fit_published.py            the constants and the table of docs/plan.md

Needs scipy, which scikit-learn brings with it.
"""

import math
from dataclasses import asdict, fields
from statistics import median
from typing import Any

from published_table import FITTED, ROWS, TESTED, PublishedRow
from recipe_way import CONSTANTS, Constants, log_error, predict_row
from scipy.optimize import least_squares

BOUNDS = {
    "matrix_a100": (0.05, 1.0),
    "matrix_v100": (0.05, 1.0),
    "eager_bandwidth": (0.05, 1.0),
    "restored_per_second": (1e9, 1e12),
    "link_a100": (0.01, 1.0),
    "link_v100": (0.01, 1.0),
    "context_gb": (0.5, 2.0),
    "zero_slack_gb": (0.1, 30.0),
    "eager_slack": (0.1, 10.0),
}
"""What is possible: shares up to all, and what a bare CUDA context with NCCL was seen to take."""


def fit() -> Constants:
    """Find the constants that explain the fitted rows best; robust, in logarithms.

    The frozen rows are taken as they were printed, with a decoder that gets no gradient.
    """
    low, high = zip(*[map(math.log, BOUNDS[one.name]) for one in fields(Constants)], strict=True)

    def errors(logarithms: Any) -> list[float]:
        constants = Constants(*(math.exp(value) for value in logarithms))
        found = []
        for row in FITTED:
            predicted = predict_row(row, constants, False)
            found.append(log_error(predicted.images_per_second, row.images_per_second))
            if row.memory_gb:
                found.append(log_error(predicted.memory_gb, row.memory_gb))
        return found

    middle = [(one + other) / 2 for one, other in zip(low, high, strict=True)]
    best = least_squares(errors, middle, bounds=(low, high), loss="soft_l1", f_scale=0.1)
    return Constants(*(math.exp(value) for value in best.x))


def table(constants: Constants) -> str:
    """Lay out every row as Markdown, and the errors of those that were not fitted."""
    lines = [
        "| row | used to | images/s | predicted | error | GB | predicted | error |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    speeds: list[float] = []
    memories: list[float] = []
    for row in ROWS:
        made = predict_row(row, constants, False)
        speed = made.images_per_second / row.images_per_second - 1
        memory = made.memory_gb / row.memory_gb - 1 if row.memory_gb else None
        if row in TESTED:
            speeds.append(abs(speed))
            memories += [] if memory is None else [abs(memory)]
        printed = "not printed | " if row.memory_gb is None else f"{row.memory_gb:g} | "
        error = "" if memory is None else f"{memory:+.0%}"
        use = "test" if row in TESTED else "fit"
        lines.append(
            f"| {row.name} | {use} | {row.images_per_second:g} | {made.images_per_second:.2f} | "
            f"{speed:+.0%} | {printed}{made.memory_gb:.1f} | {error} |"
        )
    lines += ["", _summary(speeds, memories), "", *_as_they_should_be(constants)]
    return "\n".join(lines)


def _summary(speeds: list[float], memories: list[float]) -> str:
    return (
        f"Rows not fitted: speed, median error {median(speeds):.0%}, worst {max(speeds):.0%}; "
        f"memory, median error {median(memories):.0%}, worst {max(memories):.0%}."
    )


def _as_they_should_be(constants: Constants) -> list[str]:
    lines = ["| frozen row | printed | decoder without gradients | decoder learns | of full |"]
    lines.append("| --- | --- | --- | --- | --- |")
    for row in ROWS:
        if row.strategy != "frozen_vision":
            continue
        without, learns = (
            predict_row(row, constants, decoder).images_per_second for decoder in (False, True)
        )
        full = PublishedRow(row.gpu, row.gpus, "full", row.flash, math.nan, None)
        other = predict_row(full, constants).images_per_second
        lines.append(
            f"| {row.name} | {row.images_per_second:g} | {without:.2f} | {learns:.2f} | "
            f"{learns / other:.2f}x |"
        )
    return lines


if __name__ == "__main__":
    found = fit()
    for name, value in asdict(found).items():
        print(f"{name} = {value:.4g}  (stored: {getattr(CONSTANTS, name):.4g})")
    print(table(CONSTANTS))
