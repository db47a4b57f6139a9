"""Files are read and written as UTF-8, whatever the machine's locale says."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(
    file
    for folder in ("src", "benchmarks", "cookbook")
    for file in (ROOT / folder).rglob("*.py")
    if "convert" not in file.parts  # whose own entries of folders and zips are UTF-8
)


def is_text_mode(call: ast.Call) -> bool:
    modes = [one.value for one in call.args if isinstance(one, ast.Constant)]
    return any(mode in {"r", "w", "a", "x", "r+", "w+", "a+"} for mode in modes)


def leaves_encoding_open(call: ast.Call) -> bool:
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    is_method = isinstance(call.func, ast.Attribute)
    reads = is_method and name in {"read_text", "write_text"}
    opens = name == "open" and is_text_mode(call) and ast.unparse(call.func) != "av.open"
    return (reads or opens) and not any(one.arg == "encoding" for one in call.keywords)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_file_of_text_names_its_encoding(file):
    tree = ast.parse(file.read_text(encoding="utf-8"))
    calls = [one for one in ast.walk(tree) if isinstance(one, ast.Call)]
    assert [one.lineno for one in calls if leaves_encoding_open(one)] == []
