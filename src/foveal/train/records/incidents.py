"""What went wrong in a step -> incidents.jsonl, and an end to the run when it is too much."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from foveal.errors import RunError
from foveal.train.records.journal import read_journal, rewind_journal
from foveal.train.step import StepMeasures

INCIDENTS = "incidents.jsonl"
NOT_FINITE, LEFT_OUT = "not finite", "left out"
NOTHING_LEARNT = "no weight moved"


class Incidents:
    """Counts what is too much only when it is often, over all starts of a run.

    Every process counts alike; the main one writes.
    """

    def __init__(
        self, run: Path, first_step: int, max_bad_steps: int, max_bad_fraction: float, write: bool
    ) -> None:
        """Go on from what a run left.

        Args:
            run: its folder.
            first_step: steps already taken.
            max_bad_steps: steps in a row that are not finite before the run stops.
            max_bad_fraction: share of the examples that may be left out; see `check_left_out`.
            write: whether this is the main process.
        """
        self.path = run / INCIDENTS
        self.max_bad_steps = max_bad_steps
        self.max_bad_fraction = max_bad_fraction
        self.write = write
        lines = read_journal(self.path, first_step)
        self.left_out = sum(line["what"] == LEFT_OUT for line in lines)
        bad = {line["step"] for line in lines if line["what"] == NOT_FINITE}
        self._left_out_now = 0
        self._cause = ""
        self.bad_in_a_row = 0
        while first_step - self.bad_in_a_row in bad:
            self.bad_in_a_row += 1
        if write:
            rewind_journal(self.path, first_step)

    def record(self, step: int, seen: StepMeasures) -> None:
        """Write down what was wrong with a step; `step` counts those taken, this one included."""
        lines = [
            {"step": step, "what": LEFT_OUT, "examples": [one.example_id], "reason": one.reason}
            for one in seen.left_out
        ]
        self._left_out_now = len(lines)
        self.left_out += len(lines)
        self.bad_in_a_row = 0 if seen.applied else self.bad_in_a_row + 1
        if not seen.applied:
            self._cause = seen.cause
            lines.append(
                {
                    "step": step,
                    "what": NOT_FINITE,
                    "loss": str(seen.loss),
                    "gradient_norm": str(seen.gradient_norm),
                    "cause": seen.cause,
                    "examples": list(seen.example_ids),
                }
            )
        if lines and self.write:
            self._append(lines)

    def _append(self, lines: Sequence[Mapping[str, object]]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
            file.flush()
            os.fsync(file.fileno())

    def record_nothing_learnt(self, step: int) -> None:
        """Write down, once, that a whole run left every weight as it was."""
        lines = read_journal(self.path, step)
        if self.write and not any(line["what"] == NOTHING_LEARNT for line in lines):
            self._append([{"step": step, "what": NOTHING_LEARNT}])

    def check(self, step: int, given: int, one_pass: int) -> None:
        """Stop a run in which too much goes wrong.

        A share of few examples says little: before a whole pass is over, those left out are
        counted against what a whole one would hold.

        Args:
            step: steps taken.
            given: examples of these steps.
            one_pass: examples of a pass over the data.

        Raises:
            RunError: too many steps in a row were not finite, or too many examples left out.
        """
        if self.bad_in_a_row >= self.max_bad_steps:
            raise RunError(
                f"step {step}: loss or gradient was not finite {self.bad_in_a_row} times in a row"
                f"{f': {self._cause}' if self._cause else ''}; "
                f"lower train.learning_rate or use precision=float32 (see {self.path})"
            )
        shown = max(given, one_pass)
        # Only by a step that left some out itself: who mended the pictures goes on.
        if self._left_out_now and self.left_out > self.max_bad_fraction * shown:
            raise RunError(
                f"step {step}: {self.left_out} of {shown} examples were left out for "
                f"broken pictures, more than data.max_bad_fraction={self.max_bad_fraction}; mend "
                f"them (see {self.path}, and `foveal check`), or allow more"
            )
