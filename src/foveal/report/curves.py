"""metrics.jsonl on disk -> Curves: what a run wrote down at each step."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from foveal.errors import DataError

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Curves:
    """What a run wrote down at each step, in order, each step once."""

    steps: Numbers  # (steps,)
    columns: dict[str, Numbers]
    """Name -> (steps,); not a number where a line lacks it."""

    seconds: float
    """Time of all steps, those that a resumed run did again included."""

    repeated_steps: int
    """Steps done again after a resume."""

    def total(self, name: str) -> float:
        """Sum a column over the run; 0 where it was never written."""
        return float(np.nansum(self.columns.get(name, np.zeros(1))))

    def highest(self, name: str) -> float | None:
        """Find the highest value of a column; none where it was never written."""
        values = self.columns.get(name, np.empty(0))
        known = values[np.isfinite(values)]
        return float(known.max()) if known.size else None


def read_measures(path: Path) -> Curves | None:
    """Read metrics.jsonl; none where there is no file or no line. The later line of a step counts.

    Raises:
        DataError: a line is no measure of a step.
    """
    lines = read_objects(path)
    found: dict[int, dict[str, object]] = {}
    for number, line in enumerate(lines, start=1):
        step = line.get("step")
        if not isinstance(step, int):
            raise DataError(f"{path}: measure {number} names no step; mend or remove the line")
        found[step] = line
    if not found:
        return None
    steps = sorted(found)
    names = {name for line in lines for name in line} - {"step"}
    return Curves(
        steps=np.array(steps, float),
        columns={name: _column([found[step] for step in steps], name) for name in names},
        seconds=float(np.nansum(_column(lines, "seconds"))),
        repeated_steps=len(lines) - len(steps),
    )


def _column(lines: Sequence[Mapping[str, object]], name: str) -> Numbers:
    values = (line.get(name) for line in lines)
    return np.array([value if isinstance(value, int | float) else math.nan for value in values])


def read_objects(path: Path) -> list[dict[str, object]]:
    """Read JSON objects, one a line; a last line that a kill cut short is left out.

    Returns:
        One a line; none where there is no file.

    Raises:
        DataError: another line is no JSON object.
    """
    if not path.is_file():
        return []
    lines = path.read_bytes().split(b"\n")
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            one = json.loads(line) if line.strip() else None
        except ValueError as error:
            if number == len(lines):  # every whole line ends in a line break
                break
            raise DataError(f"{path}:{number}: not JSON ({error}); mend or remove it") from None
        if isinstance(one, dict):
            found.append(one)
        elif one is not None:
            raise DataError(f"{path}:{number}: not a JSON object; mend or remove it")
    return found
