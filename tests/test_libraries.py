"""Libraries say nothing on the terminal, and none is imported that nobody uses."""

import json
import logging
import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
import tiny
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from foveal.libraries import LIBRARIES_LOG, LibraryRemarks, taken_as_absent

ROOT = Path(__file__).parents[1]

LOOK = """
import json, sys
from foveal.cli import main
try:
    main()
finally:
    found = [name for name in ("bitsandbytes", "deepspeed", "peft") if name in sys.modules]
    print(json.dumps(found), file=open("imported.json", "w"))
"""


def command(folder, *arguments):
    """Run a command in a program of its own: its two outputs, and what it imported."""
    done = subprocess.run(
        [sys.executable, "-c", LOOK, *map(str, arguments)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return done, json.loads((folder / "imported.json").read_text())


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("libraries")
    tiny.pages(folder, 2, 1, "train")
    (folder / "recipe.yaml").write_text(
        "{model: phi3-vision-tiny, run: full, precision: float32,"
        " data: {train: train.jsonl, workers: 0, num_crops: 2},"
        " train: {max_steps: 1, examples_per_step: 2, tokens_per_pass: 600}, lora: {rank: 4}}"
    )
    return folder


@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "no.jsonl"],
        pytest.param(["train", "recipe.yaml", "data.train=no.jsonl"], marks=pytest.mark.slow),
    ],
)
def test_a_refusal_is_one_line_and_nothing_more(place, arguments):
    done, _ = command(place, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("foveal: no.jsonl: ")


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "imported"), [("full", []), ("lora", ["peft"])])
def test_a_run_brings_in_no_library_that_it_does_not_use(place, strategy, imported):
    done, found = command(place, "train", "recipe.yaml", f"strategy={strategy}", f"run={strategy}")
    assert done.returncode == 0, done.stderr
    assert found == imported
    assert done.stdout.splitlines() == [
        f"model:  {strategy}/final",
        f"report: {strategy}/report.html",
    ]
    assert "WARNING" not in done.stderr
    assert "kernel" not in done.stderr
    assert not (place / strategy / LIBRARIES_LOG).exists()


def record(name, text):
    return logging.LogRecord(name, logging.WARNING, "", 0, text, (), None)


def test_remarks_wait_for_the_runs_folder_and_then_go_to_its_file(tmp_path, capsys):
    remarks = LibraryRemarks()
    remarks.handle(record("some.library", "first"))
    remarks.keep_in(tmp_path / "libraries.log")
    remarks.handle(record("another", "second"))
    lines = (tmp_path / "libraries.log").read_text().splitlines()
    assert [line.partition(" WARNING: ")[2] for line in lines] == ["first", "second"]
    assert capsys.readouterr() == ("", "")


def test_a_library_that_writes_to_standard_output_by_itself_is_caught_too(tmp_path, capsys):
    """As DeepSpeed does: a handler of its own, and nothing handed on."""
    remarks = LibraryRemarks()
    library = logging.getLogger("a library of its own")
    library.addFilter(remarks.divert)
    library.propagate = False
    library.addHandler(logging.StreamHandler(sys.stdout))
    library.warning("here I am")
    remarks.keep_in(tmp_path / "libraries.log")
    assert capsys.readouterr() == ("", "")
    assert "here I am" in (tmp_path / "libraries.log").read_text()


def test_our_own_errors_are_still_heard(tmp_path, capsys):
    remarks = LibraryRemarks()
    remarks.keep_in(tmp_path / "libraries.log")
    remarks.handle(record("foveal.serve.scheduler", "an answer failed"))
    assert capsys.readouterr().err == "an answer failed\n"
    assert not (tmp_path / "libraries.log").exists()


def test_what_was_taken_as_absent_is_there_again_afterwards():
    with taken_as_absent("foveal.libraries", "remarks_are_caught"):
        pass
    from foveal import libraries

    assert libraries.remarks_are_caught.__name__ == "remarks_are_caught"


def asked_by(name, extras):
    """What a package asks for, on whatever machine; of one that is not installed, nothing."""
    try:
        wanted = map(Requirement, requires(name) or ())
    except PackageNotFoundError:
        return
    for one in wanted:
        named = set(re.findall(r"extra == ['\"]([\w.-]+)", str(one.marker or "")))
        if not named or named & set(extras):
            yield one


def test_nothing_is_pinned_that_nothing_asks_for():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    texts = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
    for extra in project["project"]["optional-dependencies"].values():
        texts += extra
    reached, left = set(), [one for one in map(Requirement, texts) if one.name != "foveal"]
    while left:
        one = left.pop()
        key = canonicalize_name(one.name), frozenset(one.extras)
        if key not in reached:
            reached.add(key)
            left += asked_by(one.name, one.extras)
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    pinned = {canonicalize_name(line.partition("==")[0]) for line in lines}
    assert pinned - {name for name, _ in reached} == set()
