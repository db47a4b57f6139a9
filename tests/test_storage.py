"""A file is there whole or as it was before, and an error names the file that was meant."""

import errno
import os
import resource
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest
from safetensors.numpy import save_file

from foveal import storage
from foveal.storage import (
    FAILED_WRITES,
    alone_in,
    beside,
    folder_written_whole,
    write_bytes,
    write_json,
    write_text,
    written_whole,
)


def test_a_file_is_written_with_its_folder_and_nothing_beside_it(tmp_path):
    write_text(tmp_path / "new" / "note.txt", "größer\n")
    assert (tmp_path / "new" / "note.txt").read_bytes() == "größer\n".encode()
    assert os.listdir(tmp_path / "new") == ["note.txt"]


def test_threads_that_write_one_file_do_not_take_it_from_each_other(tmp_path):
    file, together = tmp_path / "note.txt", Barrier(8)

    def write(number):
        with written_whole(file) as part:
            part.write_text(f"{number}")
            together.wait()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    assert file.read_text() in set("01234567")
    assert os.listdir(tmp_path) == ["note.txt"]


def test_json_ends_its_last_line(tmp_path):
    write_json(tmp_path / "tree.json", {"a": [1, 2]}, indent=None)
    assert (tmp_path / "tree.json").read_text() == '{"a": [1, 2]}\n'


def test_a_write_that_breaks_off_leaves_the_former_file(tmp_path):
    file = tmp_path / "note.txt"
    file.write_text("before")

    def break_off():
        with written_whole(file) as part:
            part.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        break_off()
    assert file.read_text() == "before"
    assert os.listdir(tmp_path) == ["note.txt"]


def test_a_folder_that_breaks_off_leaves_the_former_one(tmp_path):
    place = tmp_path / "kept"
    place.mkdir()
    (place / "note.txt").write_text("before")

    def break_off():
        with folder_written_whole(place) as part:
            (part / "note.txt").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        break_off()
    assert (place / "note.txt").read_text() == "before"
    assert os.listdir(tmp_path) == ["kept"]


@pytest.mark.parametrize("alone", [False, True])
def test_a_folder_is_on_the_disk_with_all_below_it_before_it_takes_its_place(
    tmp_path, monkeypatch, alone
):
    place, flushed = tmp_path / "kept", []
    for torn in (place, beside(place), tmp_path / ".kept.gone"):  # of others, that were killed
        torn.mkdir()
        (torn / "torn.txt").write_text("")
    monkeypatch.setattr(storage, "flush", lambda path: flushed.append(path.name))
    with folder_written_whole(place, alone) as part:
        (part / "below").mkdir()
        (part / "below" / "note.txt").write_text("whole")
        assert not (part / "torn.txt").exists()
    assert [str(one.relative_to(place)) for one in place.rglob("*.txt")] == ["below/note.txt"]
    assert {*flushed} >= {"below", "note.txt", part.name, tmp_path.name}
    left = {".kept.part", ".kept.gone"} if not alone else set()  # not ours to take away
    assert {*os.listdir(tmp_path)} == {"kept", *left}


def test_a_full_disk_leaves_the_former_file_and_names_it(tmp_path):
    """A limit on a file's size is the nearest to a full disk that needs no root."""
    file = tmp_path / "note.txt"
    file.write_text("before")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            write_bytes(file, bytes(100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.filename == str(file)
    assert caught.value.errno in FAILED_WRITES
    assert file.read_text() == "before"
    assert os.listdir(tmp_path) == ["note.txt"]


def test_a_full_disk_that_a_library_in_rust_met_is_told_as_one(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with (
            pytest.raises(OSError, match="File too large") as caught,
            folder_written_whole(tmp_path / "model") as beside,
        ):
            save_file({"a": np.zeros(100_000)}, beside / "model.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.filename == str(tmp_path / "model")
    assert caught.value.errno in FAILED_WRITES
    assert os.listdir(tmp_path) == []


def test_a_place_whose_folder_is_gone_and_cannot_be_made_is_named(tmp_path, monkeypatch):
    place = Path("note.txt")
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()

    def lock():
        with alone_in(place, Path(".lock")):
            raise AssertionError

    def fill():
        with folder_written_whole(place):
            raise AssertionError

    for write in (partial(write_text, place, ""), lock, fill):
        with pytest.raises(NotADirectoryError, match="no folder to write in") as caught:
            write()
        assert caught.value.filename == "note.txt"


def test_a_file_where_the_folder_should_be_is_named(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(OSError, match="taken") as caught:
        write_text(tmp_path / "taken" / "note.txt", "")
    assert caught.value.errno in (errno.EEXIST, errno.ENOTDIR)
