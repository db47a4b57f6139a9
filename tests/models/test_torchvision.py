"""Types whose images torchvision alone reads: tests in a process that has it, where we have not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BESIDE = ROOT / ".torchvision"


@pytest.mark.slow
@pytest.mark.skipif(not (BESIDE / "ready").exists(), reason="`make slow` fetches torchvision")
def test_types_that_torchvision_reads_are_held_like_all_others():
    told = os.environ.get("PYTHONPATH", "")
    beside = os.pathsep.join(map(str, filter(None, [ROOT / "tests", BESIDE, told])))
    tests = Path(__file__).with_name("needs_torchvision.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "torchvision_alone", str(tests)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": beside},
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
