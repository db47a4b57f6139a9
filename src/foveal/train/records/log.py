"""What a step measured and what was wrong with it -> files, trackers, a bar; an end to bad runs."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import progress
from rich.console import Console

from foveal.errors import RunError
from foveal.machine import step_memory_bytes
from foveal.train.checkpoint import Progress
from foveal.train.records.journal import read_journal, rewind_journal
from foveal.train.records.trackers import METRICS, Trackers
from foveal.train.step import StepMeasures

INCIDENTS = "incidents.jsonl"
"""In a run's folder: what went wrong in its steps."""

NOT_FINITE, LEFT_OUT = "not finite", "left out"
NOTHING_LEARNT = "no weight moved"


class RunLog:
    """Takes each step of a run: every process counts what went wrong alike, the main one writes.

    What is too much only when it is often is counted over all starts of the run.
    """

    def __init__(
        self,
        run: Path,
        begun: Progress,
        total_steps: int,
        max_bad_steps: int,
        max_bad_fraction: float,
        show: Console | None,
        trackers: Trackers | None = None,
    ) -> None:
        """Go on where a run stands.

        Args:
            run: its folder.
            begun: where it stands, and what its checkpoints go on to say.
            total_steps: at whose end it is done.
            max_bad_steps: steps in a row that are not finite before the run stops.
            max_bad_fraction: share of the examples that may be left out; see `check`.
            show: where the main process draws its bar; none: this is another.
            trackers: that follow the run.
        """
        self.run = run
        self.begun = begun
        self.steps = steps = range(begun.step, total_steps)
        """Those that are still to be taken."""

        self.path = run / INCIDENTS
        self.max_bad_steps = max_bad_steps
        self.max_bad_fraction = max_bad_fraction
        lines = read_journal(self.path, steps.start)
        self.left_out = sum(line["what"] == LEFT_OUT for line in lines)
        bad = {line["step"] for line in lines if line["what"] == NOT_FINITE}
        self._left_out_now = 0
        self._cause = ""
        self.bad_in_a_row = 0
        while steps.start - self.bad_in_a_row in bad:
            self.bad_in_a_row += 1
        self.is_main = show is not None
        if show is None:
            return
        for journal in (self.path, run / METRICS):
            rewind_journal(journal, steps.start)
        self._lines = (run / METRICS).open("a", encoding="utf-8")
        self._trackers = trackers
        self._bar = progress.Progress(
            progress.TextColumn("[bold]step {task.completed:.0f}/{task.total:.0f}"),
            progress.BarColumn(),
            progress.TextColumn("loss {task.fields[loss]}  {task.fields[speed]} examples/s"),
            progress.TextColumn("{task.fields[left_out]}", style="red"),
            progress.TimeElapsedColumn(),
            progress.TextColumn("left"),
            progress.TimeRemainingColumn(),
            console=show,
        )
        self._task = self._bar.add_task(
            "", total=steps.stop, completed=steps.start, loss="-", speed="-", left_out=""
        )
        self._bar.start()

    def write(self, step: int, seen: StepMeasures, learning_rate: float, seconds: float) -> None:
        """Record one step; `step` counts those taken, this one included."""
        self._left_out_now = len(seen.left_out)
        self.left_out += self._left_out_now
        self.bad_in_a_row = 0 if seen.applied else self.bad_in_a_row + 1
        self._cause = self._cause if seen.applied else seen.cause
        if not self.is_main:
            return
        measured: Mapping[str, Any] = {
            "step": step,
            "loss": seen.loss,
            "learning_rate": learning_rate,
            "gradient_norm": seen.gradient_norm,
            "tokens": seen.tokens,
            "examples": seen.examples,
            "images": seen.images,
            "seconds": round(seconds, 4),
            "memory_bytes": step_memory_bytes(),
            **seen.measures,
        }
        self._lines.write(json.dumps(measured) + "\n")
        self._lines.flush()
        if self._trackers:
            self._trackers.step(measured)
        for one in seen.left_out:
            said = f"Left out {one.example_id}: {one.reason}"
            self._bar.console.print(said, highlight=False)
        self._bar.update(
            self._task,
            completed=step,
            loss=f"{seen.loss:.4f}",
            speed=f"{seen.examples / seconds:.1f}",
            left_out=f"left out: {self.left_out}" if self.left_out else "",
        )
        if incidents := _incidents(step, seen):
            _append(self.path, incidents)

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
        # Only by a step that left some out itself: who mended the images goes on.
        if self._left_out_now and self.left_out > self.max_bad_fraction * shown:
            raise RunError(
                f"step {step}: {self.left_out} of {shown} examples were left out for "
                f"broken pictures, more than data.max_bad_fraction={self.max_bad_fraction}; mend "
                f"them (see {self.path}, and `foveal check`), or allow more"
            )

    def flush(self) -> None:
        """See that every line is on the disk: a checkpoint counts on it."""
        if self.is_main:
            self._lines.flush()
            os.fsync(self._lines.fileno())
            if self._trackers:
                self._trackers.flush()

    def close(self) -> None:
        """Close the files and leave the bar as it is."""
        if self.is_main:
            self._bar.stop()
            self._lines.close()


def record_nothing_learnt(run: Path, step: int) -> None:
    """Write down, once, that a whole run left every weight as it was."""
    path = run / INCIDENTS
    if not any(line["what"] == NOTHING_LEARNT for line in read_journal(path, step)):
        _append(path, [{"step": step, "what": NOTHING_LEARNT}])


def _incidents(step: int, seen: StepMeasures) -> list[dict[str, object]]:
    lines: list[dict[str, object]] = [
        {"step": step, "what": LEFT_OUT, "examples": [one.example_id], "reason": one.reason}
        for one in seen.left_out
    ]
    if not seen.applied:
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
    return lines


def _append(path: Path, lines: Sequence[Mapping[str, object]]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
        file.flush()
        os.fsync(file.fileno())
