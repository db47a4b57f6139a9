"""Measurements -> lines of JSON, each written as soon as it is there, and shown."""

import gc
import json
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

Values = dict[str, Any]


class Record:
    """Takes measurements one by one; what fails or comes too late is written down like the rest."""

    def __init__(self, path: Path, seconds: float, judges: bool) -> None:
        """Open a file to append to.

        Args:
            path: of the lines.
            seconds: after which nothing is begun any more.
            judges: whether marks hold here; a trial at another size measures nothing.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.judges = judges
        self.failures: list[str] = []
        self.missed: list[str] = []
        self._end = time.monotonic() + seconds

    @property
    def seconds_left(self) -> float:
        """Until the time is up."""
        return max(0.0, self._end - time.monotonic())

    def write(self, part: str, name: str, values: Values) -> None:
        """Write one line, whole and at once."""
        line = {"part": part, "name": name, **values}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        shown = ", ".join(f"{key} {_short(value)}" for key, value in values.items())
        print(f"{part}: {name}: {shown}", flush=True)

    def take(self, part: str, name: str, measure: Callable[[], Values]) -> Values | None:
        """Measure something; returns what came out, or none where it failed or came too late."""
        if not self.seconds_left:
            self.write(part, name, {"left_out": "the time was up"})
            return None
        began = time.monotonic()
        try:
            values = measure()
        except Exception as error:  # what is behind it must still be measured
            self.failures.append(f"{part}: {name}")
            traceback.print_exc()
            line = " ".join(f"{type(error).__name__}: {error}".split())
            self.write(part, name, {"error": line[:500]})
            return None
        finally:
            give_back_memory()
        self.write(part, name, values | {"took_seconds": round(time.monotonic() - began, 2)})
        return values

    def judge(self, part: str, name: str, value: float, wanted: str) -> None:
        """Set a number beside its mark, such as ">= 0.45"."""
        if not self.judges:
            return
        comparison, limit = wanted.split()
        reached = value >= float(limit) if comparison == ">=" else value <= float(limit)
        if not reached:
            self.missed.append(f"{part}: {name} is {value:.3g}, wanted {wanted}")
        self.write(part, f"mark: {name}", {"value": value, "wanted": wanted, "reached": reached})


def give_back_memory() -> None:
    """Give the device's memory back, so that the next measurement begins as the first did."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
