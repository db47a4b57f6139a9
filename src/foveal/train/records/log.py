"""Measures of a step -> metrics.jsonl, the trackers and a progress bar."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from foveal.machine import step_memory_bytes
from foveal.train.records.journal import rewind_journal
from foveal.train.records.trackers import METRICS, Trackers
from foveal.train.step import StepMeasures


class RunLog:
    """Writes what each step measured, while it is open; on other ranks it is silent."""

    def __init__(
        self,
        run: Path,
        first_step: int,
        total_steps: int,
        show: Console | None,
        left_out: int = 0,
        trackers: Trackers | None = None,
    ) -> None:
        """Go on where a run stands; `left_out` examples were missing from its steps so far."""
        run.mkdir(parents=True, exist_ok=True)
        rewind_journal(run / METRICS, first_step)
        self._left_out = left_out
        self._lines = (run / METRICS).open("a", encoding="utf-8")
        self._trackers = trackers
        self._bar = Progress(
            TextColumn("[bold]step {task.completed:.0f}/{task.total:.0f}"),
            BarColumn(),
            TextColumn("loss {task.fields[loss]}  {task.fields[speed]} examples/s"),
            TextColumn("{task.fields[left_out]}", style="red"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=show or Console(quiet=True),
            disable=show is None,
        )
        self._task = self._bar.add_task(
            "", total=total_steps, completed=first_step, loss="-", speed="-", left_out=""
        )
        self._bar.start()

    def write(self, step: int, seen: StepMeasures, learning_rate: float, seconds: float) -> None:
        """Record one step; `step` counts those taken, this one included."""
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
        self._left_out += len(seen.left_out)
        for one in seen.left_out:
            self.note(f"Left out {one.example_id}: {one.reason}")
        self._bar.update(
            self._task,
            completed=step,
            loss=f"{seen.loss:.4f}",
            speed=f"{seen.examples / seconds:.1f}",
            left_out=f"left out: {self._left_out}" if self._left_out else "",
        )

    def note(self, text: str) -> None:
        """Say something above the bar."""
        self._bar.console.print(text, highlight=False)

    def flush(self) -> None:
        """See that every line is on the disk: a checkpoint counts on it."""
        self._lines.flush()
        os.fsync(self._lines.fileno())
        if self._trackers:
            self._trackers.flush()

    def close(self) -> None:
        """Close the files and leave the bar as it is."""
        self._bar.stop()
        self._lines.close()
