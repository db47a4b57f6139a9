"""Any line of a JSONL file is found at once."""

import json
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ticks import next_tick

from foveal.data import lines as lines_module
from foveal.data.encoded.column_files import KINDS
from foveal.data.lines import Examples, Lines
from foveal.errors import DataError


def line(name: str) -> str:
    return json.dumps({"id": name, "conversations": [{"user": "q", "assistant": "a"}]})


@settings(max_examples=40)
@given(
    st.lists(st.sampled_from([b"", b" ", b"\r", b"x", b'{"a": 1}', b"a long line, yes it is"])),
    st.booleans(),
    st.integers(1, 9),
)
def test_the_lines_are_those_that_reading_one_by_one_gives(tmp_path_factory, parts, ends, block):
    path = tmp_path_factory.mktemp("lines") / "data.jsonl"
    path.write_bytes(b"\n".join(parts) + b"\n" * ends)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines_module, "BLOCK_BYTES", block)
        found = Lines(path)
        with path.open("rb") as file:
            expected = [(n, one.strip(b"\n")) for n, one in enumerate(file, 1) if one.strip()]
        assert list(found) == [one for _, one in expected]
        assert [found[place] for place in range(len(found))] == [one for _, one in expected]
        assert [found.number(place) for place in range(len(found))] == [n for n, _ in expected]
        assert found[1:3] == [one for _, one in expected][1:3]


def test_examples_of_several_files_are_counted_through(tmp_path):
    for name, ids in (("one", "ab"), ("two", "cde")):
        text = "\n\n".join(map(line, ids)) + "\n"
        (tmp_path / f"{name}.jsonl").write_text(text)
    examples = Examples([tmp_path / "one.jsonl", tmp_path / "two.jsonl"])
    assert [one.id for one in examples] == list("abcde")
    assert [examples[place].id for place in (4, 0, 2, -1)] == ["e", "a", "c", "e"]
    assert [one.id for one in examples[1:4]] == ["b", "c", "d"]
    assert examples.find(3) == (tmp_path / "two.jsonl", 3)
    with pytest.raises(IndexError):
        examples[5]


def test_a_broken_line_is_named_by_its_number_however_it_is_reached(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text(f"{line('a')}\n\n{line('b')}\n{{broken\n")
    examples = Examples([path])
    assert examples[1].id == "b"
    for read in (lambda: examples[2], lambda: list(examples)):
        with pytest.raises(DataError, match=r"data\.jsonl:4: not JSON"):
            read()


def test_an_index_is_remembered_until_the_file_changes(tmp_path, monkeypatch):
    path, cache = tmp_path / "data.jsonl", tmp_path / "cache" / "index"
    path.write_text(f"{line('a')}\n{line('b')}\n")
    assert len(Lines(path, cache)) == 2
    search = lines_module._spans
    monkeypatch.setattr(lines_module, "_spans", None)
    again = Lines(path, cache)  # would call None
    assert again[1] == line("b").encode()
    monkeypatch.setattr(lines_module, "_spans", search)
    path.write_text(f"{line('a')}\n{line('b')}\n{line('c')}\n")
    assert len(Lines(path, cache)) == 3
    (kept,) = cache.parent.glob("index-*")
    (kept / KINDS).write_text("[]")
    assert len(Lines(path, cache)) == 3


def test_a_file_without_an_example_or_that_is_not_there_is_refused(tmp_path):
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "blank.jsonl").write_text("\n \n")
    for name in ("empty", "blank"):
        with pytest.raises(DataError, match="no examples"):
            Examples([tmp_path / f"{name}.jsonl"])
    with pytest.raises(DataError, match=r"none\.jsonl: No such file"):
        Examples([tmp_path / "none.jsonl"])


def test_a_file_that_is_cut_short_under_its_reader_ends_in_one_line(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text(f"{line('a')}\n{line('b')}\n")
    found = Lines(path)
    path.write_text("x")
    with pytest.raises(DataError, match="became shorter"):
        found[1]


def test_an_index_of_many_lines_is_a_few_bytes_a_line(tmp_path):
    path, cache = tmp_path / "data.jsonl", tmp_path / "index"
    path.write_text((line("a") + "\n") * 20_000)
    found = Lines(path, cache)
    owner = found._spans
    while isinstance(owner.base, np.ndarray):
        owner = owner.base
    assert isinstance(owner, np.memmap)  # the system may drop it again
    (kept,) = tmp_path.glob("index-*")
    assert sum(one.stat().st_size for one in kept.iterdir()) < 17 * 20_000
    assert found[19_999] == line("a").encode()


def test_an_index_is_made_anew_for_other_lines_of_equal_length_and_time(tmp_path):
    path, cache = tmp_path / "data.jsonl", tmp_path / "index"
    path.write_bytes(b"0123456789012345678\n0123456789012345678\n")
    before = path.stat()
    assert len(Lines(path, cache)) == 2
    next_tick(path)
    path.write_bytes(b"0123456789\n0123456789\n01234567890123456\n")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert [bytes(line) for line in Lines(path, cache)] == path.read_bytes().splitlines()
