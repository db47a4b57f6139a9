"""Images in the rows of Parquet files are read where they lie, as those in a folder are."""

import sys
import threading

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from ticks import next_tick
from tiny import pages
from words import WordProcessor

from foveal.data.checking.check import check_file
from foveal.data.checking.overlap import describe_overlap
from foveal.data.dataset import read_dataset
from foveal.data.images import archives, parquet_images
from foveal.data.images.archives import containing_file, open_stored, size_bytes
from foveal.data.images.image_folder import ImageFolder
from foveal.data.images.media import image_identity, open_image
from foveal.errors import DataError, UserError


def plain(files):
    """Bytes and nothing else."""
    return pa.table({"image": [file.read_bytes() for file in files], "text": ["a"] * len(files)})


def with_paths(files):
    """As `datasets` writes images."""
    import datasets

    rows = [{"image": {"bytes": file.read_bytes(), "path": file.name}} for file in files]
    features = datasets.Features({"image": datasets.Image()})
    return datasets.Dataset.from_list(rows, features).with_format("arrow")[:]


KINDS = {"plain": plain, "with paths": with_paths}
COMPRESSION = pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])


@pytest.fixture
def shelf(tmp_path):
    pages(tmp_path / "plain", 5, 2)
    (tmp_path / "packed").mkdir()
    return tmp_path


def files_of(shelf):
    return sorted((shelf / "plain" / "images").iterdir())


def packed(shelf, kind, **options):
    """The same examples, whose images lie in rows beside them."""
    table = KINDS[kind](files_of(shelf))
    parquet.write_table(table, shelf / "packed" / "pages.parquet", row_group_size=2, **options)
    text = (shelf / "plain" / "data.jsonl").read_text()
    for row, file in enumerate(files_of(shelf)):
        name = file.name if kind == "with paths" else f"image/{row}"
        text = text.replace(file.name, f"pages.parquet/{name}")
    (shelf / "packed" / "data.jsonl").write_text(text)
    return shelf / "packed" / "data.jsonl"


@pytest.mark.parametrize("kind", KINDS)
@COMPRESSION
@pytest.mark.parametrize("cached", [False, True])
def test_images_in_rows_are_those_of_the_folder_that_was_packed(shelf, kind, compression, cached):
    cache = shelf / "cache" if cached else None
    _, folder = read_dataset(shelf / "plain" / "data.jsonl", WordProcessor())
    data = packed(shelf, kind, compression=compression)
    for _ in range(2):
        _, found = read_dataset(data, WordProcessor(), cache=cache)
        assert found.fingerprint == folder.fingerprint
        for one, other in zip(found.images, folder.images, strict=True):
            assert containing_file(one.path) == shelf / "packed" / "pages.parquet"
            assert np.array_equal(open_image(one.path), open_image(other.path))
            assert image_identity(one.path) == image_identity(other.path)
            assert size_bytes(one.path) == size_bytes(other.path)
    assert list(check_file(data)) == []
    assert describe_overlap(folder, found).startswith("10 of 10 validation examples")


def test_the_file_that_datasets_writes_itself_is_read(shelf):
    import datasets

    files = files_of(shelf)
    features = datasets.Features(
        {"image": datasets.Image(), "images": datasets.List(datasets.Image())}
    )
    held = [{"bytes": file.read_bytes(), "path": file.name} for file in files]
    rows = [{"image": one, "images": [one, held[0]]} for one in held]
    place = shelf / "packed" / "pages.parquet"
    datasets.Dataset.from_list(rows, features).to_parquet(place)
    folder = ImageFolder(shelf / "packed" / "data.jsonl")
    for row, file in enumerate(files):
        for name, expected in (
            (f"image/{row}", file),
            (f"image/{file.name}", file),
            (f"images/{row}", file),
            (f"images/{row}/1", files[0]),
        ):
            with open_stored(folder.find(f"pages.parquet/{name}")) as opened:
                assert opened.read() == expected.read_bytes()


def test_images_of_the_turns_of_our_own_layout_are_counted_through_a_row(shelf):
    contents = [file.read_bytes() for file in files_of(shelf)]
    turns = [
        [{"images": [{"bytes": one} for one in turn], "user": "?"} for turn in row]
        for row in ([contents[:2], [], contents[2:3]], [[]], [contents[3:]])
    ]
    parquet.write_table(pa.table({"conversations": turns}), shelf / "own.parquet")
    folder = ImageFolder(shelf / "data.jsonl", shelf / "own.parquet")
    found = [folder.find(name) for name in ("0/0", "0/1", "0/2", "2/0", "conversations/2/1")]
    assert [open_stored(path).read() for path in found] == contents
    with pytest.raises(DataError, match=r"own\.parquet: holds no image 1; name another"):
        open_stored(folder.find("1"))
    with pytest.raises(DataError, match="image 3/0 is not in"):
        folder.find("3/0")


def test_of_pages_that_are_not_compressed_an_image_alone_is_read(shelf, monkeypatch):
    import datasets

    noise = [np.random.default_rng(number).bytes(50_000 + number) for number in range(200)]
    features = datasets.Features({"image": datasets.Image()})
    rows = [{"image": {"bytes": one, "path": f"{row}.jpg"}} for row, one in enumerate(noise)]
    datasets.Dataset.from_list(rows, features).to_parquet(shelf / "a.parquet")
    folder = ImageFolder(shelf / "data.jsonl", shelf / "a.parquet", shelf / "cache")
    paths = [folder.find(str(row)) for row in range(200)]
    assert folder.find("7.jpg") == paths[7].with_name("7.jpg")
    monkeypatch.setattr(archives, "image_bytes", lambda *_: pytest.fail("read by its row"))
    for row in np.random.default_rng(0).permutation(200).tolist():
        with open_stored(paths[row]) as opened:
            assert opened.read() == noise[row]
        assert size_bytes(paths[row]) == len(noise[row])


@pytest.mark.parametrize("order", [1, -1])
def test_a_file_is_read_once_by_who_goes_through_it_and_any_order_finds_the_same(
    shelf, monkeypatch, order
):
    contents = [bytes([row]) * 50 for row in range(100)]
    table = pa.table({"image": contents})
    parquet.write_table(table, shelf / "a.parquet", row_group_size=20, data_page_size=200)
    monkeypatch.setattr(parquet_images, "BLOCK_BYTES", 200)
    begun = []
    usual = parquet_images._Reader._begin
    monkeypatch.setattr(
        parquet_images._Reader, "_begin", lambda it, group: begun.append(group) or usual(it, group)
    )
    folder = ImageFolder(shelf / "data.jsonl", shelf / "a.parquet")
    paths = [folder.find(str(row)) for row in range(100)]
    assert [open_stored(path).read() for path in paths[::order]] == contents[::order]
    if order == 1:
        assert begun == 2 * [0, 1, 2, 3, 4]  # to be found, and to be opened


def test_threads_that_read_at_once_get_what_each_asked_for(shelf):
    contents = [bytes([row]) * 50 for row in range(100)]
    parquet.write_table(pa.table({"image": contents}), shelf / "a.parquet", row_group_size=20)
    folder = ImageFolder(shelf / "data.jsonl", shelf / "a.parquet")
    paths = [folder.find(str(row)) for row in range(100)]
    found = {}

    def read(start):
        for at in range(start, 100, 4):
            found[at] = open_stored(paths[at]).read()

    threads = [threading.Thread(target=read, args=(start,)) for start in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert [found[at] for at in range(100)] == contents


def test_of_a_large_row_group_little_is_in_memory_at_once(shelf):
    each = np.random.default_rng(0).bytes(2**20)
    table = pa.table({"image": [each[at:] + each[:at] for at in range(64)]})
    parquet.write_table(table, shelf / "a.parquet", row_group_size=64, write_batch_size=1)
    path = ImageFolder(shelf / "data.jsonl", shelf / "a.parquet").find("63")
    usual = pa.default_memory_pool()
    counting = pa.proxy_memory_pool(usual)
    pa.set_memory_pool(counting)
    parquet_images._reader.cache_clear()
    try:
        assert open_stored(path).read() == each[63:] + each[:63]
        most = counting.max_memory()
    finally:
        parquet_images._reader.cache_clear()
        pa.set_memory_pool(usual)
    blocks = (parquet_images.BLOCKS_AT_HAND + 2) * parquet_images.BLOCK_BYTES
    assert 2**20 < most < blocks < len(each) * 32


def test_a_file_that_was_written_anew_is_looked_into_anew(shelf):
    data, cache = packed(shelf, "with paths"), shelf / "cache"
    _, before = read_dataset(data, WordProcessor(), cache=cache)
    first, *_, last = files_of(shelf)
    first.write_bytes(last.read_bytes())
    _, after = read_dataset(packed(shelf, "with paths"), WordProcessor(), cache=cache)
    assert after.fingerprint != before.fingerprint
    assert open_stored(after.images[0].path).read() == last.read_bytes()


@pytest.mark.parametrize("cut", [0, 100, -20])
def test_a_broken_file_is_named(shelf, cut):
    place = packed(shelf, "plain").with_name("pages.parquet")
    place.write_bytes(place.read_bytes()[:cut])
    with pytest.raises(DataError, match=r"pages\.parquet: broken Parquet file \(.*\); replace it"):
        ImageFolder(shelf / "data.jsonl", place).find("0")


def test_pages_that_are_broken_are_named_when_they_are_read(shelf):
    place = packed(shelf, "plain", compression="snappy").with_name("pages.parquet")
    path = ImageFolder(shelf / "data.jsonl", place).find("0")
    content = bytearray(place.read_bytes())
    content[4:200] = b"\xff" * 196
    next_tick(place)
    place.write_bytes(content)
    with pytest.raises(DataError, match=r"pages\.parquet: broken Parquet file"):
        open_image(path)


def test_the_missing_package_is_named(shelf, monkeypatch):
    place = packed(shelf, "plain").with_name("pages.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"pip install foveal\[data\]"):
        ImageFolder(shelf / "data.jsonl", place).find("0")
