"""What the scripts of `findings/` promise of their form; none of them is run here."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FINDINGS = Path(__file__).parents[1] / "findings"
SCRIPTS = sorted(FINDINGS.glob("*-*.sh"))
PARTS = ("Guessed", "Happens", "Why", "Matters", "Versions")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_finding_says_what_was_guessed_what_happens_and_why(script):
    heading = script.read_text().partition("\nset -euo pipefail\n")[0]
    assert re.match(r"#!/usr/bin/env bash\n# .*\.\n#\n", heading)
    assert tuple(re.findall(r"^# (\w+): ", heading, flags=re.MULTILINE)) == PARTS
    assert os.access(script, os.X_OK)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_finding_pins_what_it_installs_and_leaves_foveal_out(script):
    text = script.read_text().replace("\\\n", " ")
    lines = re.findall(r'packages\.sh" (.*)|pip install (.*)', text)
    wanted = [one for line in lines for part in line for one in part.split()]
    packages = [one.strip("'") for one in wanted if not one.startswith("--")]
    assert packages
    assert [one for one in packages if not re.fullmatch(r"[\w-]+(\[\w+\])?==[\d.]+", one)] == []
    assert "foveal" not in text


def test_every_finding_is_in_the_list_of_its_folder():
    listed = re.findall(r"^\| `([\w-]+)` \|", (FINDINGS / "README.md").read_text(), re.MULTILINE)
    assert sorted(listed) == [script.stem for script in SCRIPTS]


def test_shellcheck_finds_nothing_in_the_findings():
    shellcheck = Path(sys.executable).with_name("shellcheck")
    scripts = [str(script) for script in sorted(FINDINGS.glob("*.sh"))]
    ran = subprocess.run([shellcheck, "-x", *scripts], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (0, "")
