"""The tests that hold on a GPU -> a line for each, by pytest, whose plugin this file is too."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from on_gpu.record import Record

PART = "right"
ROOT = Path(__file__).parents[2]
TESTS = (
    "tests/train/test_devices.py",
    "tests/models/phi3_vision/test_model.py",
    "tests/train/test_run.py",
)
"""Files with tests that are marked `gpu`, the most telling first."""

TRIED = ("test_the_first_steps_audits_pass", "test_answers_are_those_of_a_processor")
"""What a trial without a GPU runs of them: enough to see that the lines are written."""

LINES = "ON_GPU_LINES"
"""Tells the plugin which file to append to."""

SHARE = 0.45
"""Of the time that is left: the other parts want some too."""


def run(record: Record, device: str) -> None:
    """Run the tests of a device in a process of their own, which ends when its time is up."""
    words = ["-m", "pytest", "-q", "-p", "on_gpu.right", "-o", "filterwarnings=default", *TESTS]
    words += ["-m", "gpu"] if device != "cpu" else ["-k", " or ".join(TRIED)]
    places = [str(ROOT / "benchmarks"), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    around = {LINES: str(record.path.resolve()), "PYTHONPATH": os.pathsep.join(places)}

    def tests() -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, *words],
            cwd=ROOT,
            env=os.environ | around,
            timeout=record.seconds_left * SHARE,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"pytest ended with {done.returncode}")
        return {"passed": True}

    record.take(PART, "all tests", tests)


def pytest_runtest_logreport(report: Any) -> None:
    """Write what became of a test."""
    if report.when != "call" and report.passed:
        return
    values = {"outcome": report.outcome, "took_seconds": round(report.duration, 2)}
    if report.failed:
        values["error"] = str(report.longrepr)[-500:]
    Record(Path(os.environ[LINES]), 0.0, judges=False).write(PART, report.nodeid, values)
