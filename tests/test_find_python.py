"""`make` takes any Python that suits, and says in one line what is missing."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / ".ci" / "find_python"


def find(folder, **environment):
    return subprocess.run(
        [SCRIPT],
        env={"PATH": f"{folder}:/usr/bin:/bin", "HOME": str(folder)} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def pretend(folder, name, script):
    """A Python of that name, which is a shell script."""
    file = folder / name
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    return file


def test_the_python_that_is_given_is_taken(tmp_path):
    done = find(tmp_path, PYTHON=sys.executable)
    assert (done.returncode, done.stdout) == (0, f"{sys.executable}\n")


def test_one_that_does_not_run_is_passed_over(tmp_path):
    """As pyenv's names of versions that are not chosen."""
    pretend(tmp_path, "python3.11", "exit 127")
    pretend(tmp_path, "python3.12", "exit 0")
    assert find(tmp_path).stdout == "python3.12\n"


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("exit 1", "is not a Python from 3.11 to 3.14"),
        ('case "$2" in *venv*) exit 1;; esac', "is not a Python from 3.11 to 3.14 with its venv"),
    ],
)
def test_what_is_missing_is_told_in_one_line(tmp_path, script, message):
    python = pretend(tmp_path, "mine", script)
    done = find(tmp_path, PYTHON=str(python))
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert message in line


def test_a_python_without_its_venv_module_names_the_package(tmp_path):
    for name in ("python3.11", "python3.12", "python3.13", "python3.14", "python3"):
        pretend(tmp_path, name, 'case "$2" in *venv*) exit 1;; esac')
    done = find(tmp_path)
    assert done.returncode == 1
    assert "has no venv module; on Debian: apt install python3" in done.stderr


def test_a_full_disk_is_told_before_anything_is_fetched(tmp_path):
    pretend(tmp_path, "df", "printf 'head\\n/dev/x 9 9 12 9%% /\\n'")
    done = find(tmp_path, PYTHON=sys.executable)
    assert done.returncode == 1
    assert "12 MB are free" in done.stderr
