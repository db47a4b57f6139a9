"""The house: a name means one thing, files stay short, the walk asks for nothing beside itself."""

import ast
import re
from collections import defaultdict
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "foveal"

PUBLIC_AND_BELOW = {"load"}
COMMANDS_AND_WHAT_THEY_CALL = {"convert", "push", "serve", "train", "ask"}
SHARED_NAMES = PUBLIC_AND_BELOW | COMMANDS_AND_WHAT_THEY_CALL

WORDS = {
    "picture": "image",
    "pictures": "images",
    "piece": "chunk",
    "pieces": "chunks",
    "deal": "balance",
    "fixed": "frozen",
    "lr": "learning_rate",
}
"""What a thing was called here -> what the field calls it."""

LONGEST_FILE = 400
LONGEST_STOP = 300
LARGEST_ROOM = 2500

GROUND = {"config", "errors", "machine", "storage"}
BELOW = {
    "data": {"data"},
    "models": {"data", "models"},
    "train": {"data", "models", "train"},
    "evaluate": {"data", "models", "evaluate"},
    "report": {"data", "evaluate", "report"},
}
"""Room of a stop of the walk -> rooms that it may ask, beside the ground."""


def modules():
    return [one for one in SOURCE.rglob("*.py") if one.name != "__init__.py"]


def walk():
    table = (ROOT / "docs" / "architecture.md").read_text().partition("| file |")[2]
    return re.findall(r"^\| `(\w+/\w+\.py)`", table, re.M)


def imported(path):
    found = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    names = [one.module for one in found if isinstance(one, ast.ImportFrom) and one.module]
    return sorted(name for name in names if name.startswith("foveal."))


def test_no_two_files_have_one_name():
    named = defaultdict(list)
    for path in modules():
        named[path.name].append(str(path.relative_to(SOURCE)))
    assert {name: places for name, places in named.items() if len(places) > 1} == {}


def test_no_class_or_public_function_has_the_name_of_another():
    named = defaultdict(list)
    for path in SOURCE.rglob("*.py"):
        for one in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(one, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                named[one.name].append(str(path.relative_to(SOURCE)))
    twice = {name for name, places in named.items() if len(places) > 1 and name[0] != "_"}
    assert twice == SHARED_NAMES  # a name that is free again leaves the list


def test_no_two_modules_ask_for_each_other():
    """Not even within a function, or for types alone."""
    asked = {}
    for path in SOURCE.rglob("*.py"):
        name = ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts)
        found = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        imports = [one for one in found if isinstance(one, ast.ImportFrom)]
        asked[name.removesuffix(".__init__")] = {
            place
            for one in imports
            for part in one.names
            for place in (one.module, f"{one.module}.{part.name}")
        }
    # `from foveal.cli import front` asks for the part, and a part for nothing of its whole.
    order = {
        name: {one for one in places & asked.keys() if not f"{name}.".startswith(f"{one}.")}
        for name, places in asked.items()
    }
    TopologicalSorter(order).prepare()  # or CycleError names them


def test_names_are_the_words_of_the_field():
    named = defaultdict(set)
    for path in SOURCE.rglob("*.py"):
        for one in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = getattr(one, "name", None) or getattr(one, "arg", None) or getattr(one, "id", "")
            parts = re.split(r"_|(?<=[a-z])(?=[A-Z])", name)
            for word in WORDS.keys() & {part.lower() for part in parts}:
                named[f"{word} is {WORDS[word]}"].add(f"{path.relative_to(SOURCE)}: {name}")
    assert named == {}


def test_every_file_fits_a_reading():
    lengths = {str(one.relative_to(SOURCE)): len(one.read_text().splitlines()) for one in modules()}
    assert {name: lines for name, lines in lengths.items() if lines > LONGEST_FILE} == {}


def test_every_room_fits_an_afternoon():
    sizes = defaultdict(int)
    for path in SOURCE.rglob("*.py"):
        sizes[str(path.parent.relative_to(SOURCE))] += len(path.read_text().splitlines())
    assert {room: lines for room, lines in sizes.items() if lines > LARGEST_ROOM} == {}


@pytest.mark.parametrize("stop", walk())
def test_a_stop_of_the_walk_is_read_in_one_go(stop):
    assert len((SOURCE / stop).read_text().splitlines()) < LONGEST_STOP


@pytest.mark.parametrize("stop", walk())
def test_a_stop_of_the_walk_asks_for_nothing_above_it(stop):
    rooms = {name.split(".")[1] for name in imported(SOURCE / stop)}
    assert rooms <= GROUND | BELOW[Path(stop).parts[0]]


def test_the_walk_is_told_in_both_guides_alike():
    guide = (ROOT / "CONTRIBUTING.md").read_text().partition("| file |")[2]
    assert re.findall(r"^\| `(\w+/\w+\.py)`", guide, re.M) == walk()


def test_the_loop_takes_five_arguments():
    loop = ast.parse((SOURCE / "train" / "loop.py").read_text(encoding="utf-8")).body
    (train,) = (one for one in loop if getattr(one, "name", "") == "train")
    assert [one.arg for one in train.args.args] == [
        *("learner", "loader", "log", "evaluate", "request")
    ]
