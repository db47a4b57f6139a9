"""Sizes of images are read once, remembered, and read again when a file is another one."""

import os
import tarfile

import numpy as np
import pytest
from PIL import Image
from ticks import next_tick

from foveal.data.encoded import measured as module
from foveal.data.encoded.column_files import KINDS, digest_of
from foveal.data.encoded.measured import LOOKED_AT, image_sizes
from foveal.data.images.image_folder import ImageFolder
from foveal.errors import DataError


def found(paths, cache, **settings):
    named = [str(path) for path in paths]
    names = np.frombuffer(b"".join(digest_of(os.fsencode(one)) for one in named), np.uint64)
    sizes = image_sizes(named, names.reshape(-1, 2), cache, **settings)
    return [tuple(size) for size in sizes.tolist()]


def test_sizes_of_many_images_come_in_order_and_a_path_may_occur_twice(tmp_path):
    paths = []
    for width in (5, 9, 7):
        Image.new("L", (width, 3)).save(tmp_path / f"{width}.png")
        paths.append(tmp_path / f"{width}.png")
    assert found([*paths, paths[0]], tmp_path / "sizes") == [(5, 3), (9, 3), (7, 3), (5, 3)]


def test_a_remembered_size_is_not_read_again_until_the_file_changes(tmp_path, monkeypatch):
    path, cache = tmp_path / "picture.png", tmp_path / "below" / "sizes"
    Image.new("L", (5, 3)).save(path)
    assert found([path], cache) == [(5, 3)]
    with monkeypatch.context() as patch:
        patch.setattr(module, "image_size", lambda _: pytest.fail("read again"))
        assert found([path], cache) == [(5, 3)]
    Image.new("L", (50, 30)).save(path)
    assert found([path], cache) == [(50, 30)]
    assert [file.name for file in cache.parent.iterdir()] == ["sizes"]


def test_sizes_of_some_files_are_remembered_when_others_come_and_go(tmp_path, monkeypatch):
    cache, paths = tmp_path / "sizes", [tmp_path / f"{number}.png" for number in range(5)]
    for number, path in enumerate(paths):
        Image.new("L", (5 + number, 3)).save(path)
    found(paths[:4], cache)
    read = []
    usual = module.image_size
    monkeypatch.setattr(module, "image_size", lambda path: read.append(path) or usual(path))
    assert found(paths[:0:-1], cache) == [(9, 3), (8, 3), (7, 3), (6, 3)]
    assert read == [paths[4]]


def test_a_file_of_equal_length_but_another_time_is_read_again(tmp_path):
    path, cache = tmp_path / "picture.bmp", tmp_path / "sizes"
    Image.new("RGB", (4, 8)).save(path)
    assert found([path], cache) == [(4, 8)]
    length = path.stat().st_size
    Image.new("RGB", (8, 4)).save(path)
    os.utime(path, (1, 1))
    assert path.stat().st_size == length
    assert found([path], cache) == [(8, 4)]


def test_an_image_put_in_anothers_place_is_read_again_though_length_and_time_are_kept(tmp_path):
    path, cache = tmp_path / "picture.bmp", tmp_path / "sizes"
    Image.new("RGB", (400, 100)).save(path)
    before = path.stat()
    assert found([path], cache) == [(400, 100)]
    next_tick(path)
    Image.new("RGB", (100, 400)).save(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert found([path], cache) == [(100, 400)]


def test_what_another_process_looked_at_meanwhile_is_trusted_and_nothing_older(tmp_path):
    path, cache = tmp_path / "picture.png", tmp_path / "sizes"
    Image.new("L", (5, 3)).save(path)
    found([path], cache)
    Image.new("L", (50, 30)).save(path)
    looked = (cache / LOOKED_AT).stat().st_mtime
    assert found([path], cache, since=looked - 1) == [(5, 3)]
    assert found([path], cache, since=looked) == [(50, 30)]


def test_of_a_million_images_in_an_archive_the_archive_alone_is_looked_at(tmp_path, monkeypatch):
    for number in range(6):
        Image.new("L", (5 + number, 3)).save(tmp_path / f"{number}.png")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for number in range(5):
            tar.add(tmp_path / f"{number}.png", f"{number}.png")
    inside = ImageFolder(tmp_path / "data.jsonl", tmp_path / "a.tar")
    paths = [inside.find("0.png"), tmp_path / "5.png", *(inside.find(f"{k}.png") for k in (3, 4))]
    looked, usual = [], module.state_of
    monkeypatch.setattr(module, "state_of", lambda path: looked.append(str(path)) or usual(path))
    for _ in range(2):
        assert found(paths, tmp_path / "sizes") == [(5, 3), (10, 3), (8, 3), (9, 3)]
        assert looked == [str(tmp_path / "a.tar"), str(tmp_path / "5.png")]
        looked.clear()
    next_tick(tmp_path / "a.tar")
    with tarfile.open(tmp_path / "a.tar", "a") as tar:
        tar.add(tmp_path / "5.png", "5.png")
    read, measure = [], module.image_size
    monkeypatch.setattr(module, "image_size", lambda path: read.append(path) or measure(path))
    assert found(paths, tmp_path / "sizes") == [(5, 3), (10, 3), (8, 3), (9, 3)]
    assert read == [paths[0], *paths[2:]]


@pytest.mark.parametrize("broken", [b"", b"{", b"[]", b'{"sizes": 3}', b'{"sizes": ["<i4", [2]]}'])
def test_a_broken_memory_of_sizes_is_made_anew(tmp_path, broken):
    path, cache = tmp_path / "picture.png", tmp_path / "sizes"
    Image.new("L", (5, 3)).save(path)
    cache.mkdir()
    (cache / KINDS).write_bytes(broken)
    for _ in range(2):
        assert found([path], cache) == [(5, 3)]
    assert np.fromfile(cache / "sizes", np.int32).tolist() == [5, 3]


def test_sizes_read_in_processes_are_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "HEADERS_AT_ONCE", 4)
    expected = [(1 + number % 13, 1 + number % 7) for number in range(10)]
    for number, size in enumerate(expected):
        Image.new("1", size).save(tmp_path / f"{number}.bmp")
    paths = sorted(tmp_path.glob("*.bmp"))
    assert found(paths, tmp_path / "sizes", workers=2) == expected
    paths[6].write_bytes(b"")
    with pytest.raises(DataError, match=r"6\.bmp: an empty file"):
        found(paths, tmp_path / "others", workers=2)
