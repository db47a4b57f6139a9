"""Images in an object store are read as those in a folder are, and fetched once."""

import errno
import sys
import tarfile
import zipfile
from contextlib import closing
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from daily import daily
from loopback_store import BUCKET, loopback_store
from PIL import Image
from pyarrow import parquet
from tiny import pages
from words import WordProcessor

from foveal.config import DataSettings
from foveal.data.checking.check import check_file
from foveal.data.checking.overlap import describe_overlap
from foveal.data.convert.unpack import unpacked
from foveal.data.dataset import read_dataset
from foveal.data.images import kept_bytes, objects, parquet_images
from foveal.data.images.image_folder import ImageFolder
from foveal.data.images.media import image_size, open_image
from foveal.data.images.objects import image_base
from foveal.data.loader import RowBatches, StepLoader
from foveal.data.rows import RowPlanner
from foveal.errors import ConfigError, DataError, StoreError

PAGES = f"s3://{BUCKET}/pages"


@pytest.fixture(scope="module")
def server():
    with pytest.MonkeyPatch.context() as patch, loopback_store(patch) as found:
        yield found


@pytest.fixture
def store(server, monkeypatch):
    monkeypatch.setattr(objects, "PAUSE_SECONDS", 0.001)
    server.empty()
    return server


@pytest.fixture
def shelf(tmp_path, store):
    """Pages beside their examples, and the same in the store."""
    pages(tmp_path, 3, 2)
    store.put_folder("pages", tmp_path / "images")
    return tmp_path


class PixelProcessor(WordProcessor):
    """Would cut images, if there were any."""

    def pixels(self, image):
        raise AssertionError("there is no image")


def base(folder, images=PAGES, **more):
    return image_base(DataSettings(images=images, object_cache=folder / "objects", **more))


def read(shelf, images=PAGES, cache=None):
    return read_dataset(shelf / "data.jsonl", WordProcessor(), base(shelf, images), cache)[1]


def png(width, seed=0):
    content = BytesIO()
    noise = np.random.default_rng(seed).integers(0, 256, (300, width, 3), np.uint8)
    Image.fromarray(noise).save(content, "PNG")
    return content.getvalue()


def test_images_of_a_store_are_those_of_the_folder_that_was_copied_there(shelf):
    there, here = read(shelf), read_dataset(shelf / "data.jsonl", WordProcessor())[1]
    assert there.fingerprint == here.fingerprint
    for far, near in zip(there.images, here.images, strict=True):
        assert open_image(far.path).tobytes() == open_image(near.path).tobytes()
    assert list(check_file(shelf / "data.jsonl", base(shelf))) == []
    assert describe_overlap(there, here).startswith("6 of 6 validation examples")


def test_an_example_may_name_an_image_by_its_url_below_the_declared_store(shelf):
    data = shelf / "data.jsonl"
    data.write_text(data.read_text().replace("data-", f"{PAGES}/data-"))
    assert len(read(shelf, f"s3://{BUCKET}").images) == 3
    assert len(read(shelf, "s3://").images) == 3


@pytest.mark.parametrize(
    ("images", "path", "problem"),
    [
        (PAGES, "../other/a.png", f"outside {PAGES}"),
        (PAGES, f"s3://{BUCKET}/other/a.png", f"outside {PAGES}; .*data.images=s3://{BUCKET}"),
        (PAGES, "/etc/hostname", f"outside {PAGES}"),
        (f"s3://{BUCKET}/pag", f"{PAGES}/data-0.png", "outside"),
        (PAGES, f"{PAGES}/../other/a.png", "empty or dots"),
        (PAGES, f"{PAGES}//a.png", "empty or dots"),
        (PAGES, "file:///etc/hostname", "without file://"),
        (PAGES, "gs://shelf/pages/a.png", "data.images=gs://shelf"),
        (None, f"{PAGES}/data-0.png", f"data.images=s3://{BUCKET}"),
    ],
)
def test_no_path_of_an_example_leaves_the_declared_base(shelf, images, path, problem):
    with pytest.raises((DataError, ConfigError), match=problem):
        ImageFolder(shelf / "data.jsonl", base(shelf, images)).find(path)


def test_of_a_large_image_only_the_header_is_fetched_until_it_is_opened(shelf, store):
    large = png(900)
    store.put("pages/large.png", large)
    path = base(shelf) / "large.png"
    store.asked.clear()
    assert image_size(path) == (900, 300)
    assert store.fetched_bytes() <= objects.HEADER_BYTES < len(large) / 10
    store.asked.clear()
    assert open_image(path).size == (900, 300)
    assert store.fetched_bytes() == len(large)


def test_what_was_opened_once_needs_no_network_again(shelf, store, monkeypatch):
    cache = shelf / "cache"
    first = read(shelf, cache=cache)
    images = [open_image(one.path).tobytes() for one in first.images]
    store.cut_off(monkeypatch)
    again = read(shelf, cache=cache)
    assert again.fingerprint == first.fingerprint
    assert [open_image(one.path).tobytes() for one in again.images] == images


def test_a_store_that_does_not_answer_is_named_and_no_image_is_taken_for_broken(
    shelf, store, monkeypatch
):
    images = read(shelf).images
    store.cut_off(monkeypatch)
    with pytest.raises(
        StoreError, match=f"{PAGES}/data-0.png: cannot be read .*same command"
    ) as it:
        open_image(images[0].path)
    assert "\n" not in str(it.value)
    with pytest.raises(StoreError, match="cannot be read"):
        read(shelf)


def test_a_header_that_cannot_be_fetched_makes_no_broken_image(shelf, store, monkeypatch):
    store.cut_off(monkeypatch, "get_object")
    with pytest.raises(StoreError, match=r"data-0\.png: cannot be read"):
        image_size(base(shelf) / "data-0.png")


@pytest.mark.parametrize("images", ["pages", "shards/0.tar", "shards/0.parquet"])
def test_a_full_disk_is_no_fault_of_an_image_of_which_something_is_noted(
    shelf, store, monkeypatch, images
):
    for one in read(shelf).images:
        open_image(one.path)
    files, table, shard = sorted((shelf / "images").iterdir()), BytesIO(), BytesIO()
    store.put(f"pages/{files[0].name}", png(310))  # which is to be noted
    rows = [{"bytes": file.read_bytes(), "path": file.name} for file in files]
    parquet.write_table(pa.table({"image": rows}), table)
    with tarfile.open(fileobj=shard, mode="w") as tar:
        for file in files:
            tar.add(file, file.name)
    store.put("shards/0.parquet", table.getvalue())
    store.put("shards/0.tar", shard.getvalue())

    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(kept_bytes, "write_bytes", full)
    with pytest.raises(StoreError, match=r"^cannot write to .*: No space left .*; free space"):
        read(shelf, f"s3://{BUCKET}/{images}", shelf / "cache")


def test_an_object_that_breaks_off_is_asked_for_again_and_is_no_full_disk(
    shelf, store, monkeypatch
):
    import s3fs

    usual, breaks = s3fs.S3File.read, iter([True])
    monkeypatch.setattr(
        s3fs.S3File,
        "read",
        lambda file, length: b"" if next(breaks, False) else usual(file, length),
    )
    assert open_image(base(shelf) / "data-0.png").size == image_size(shelf / "images/data-0.png")
    monkeypatch.setattr(s3fs.S3File, "read", lambda file, length: b"")
    with pytest.raises(StoreError, match=r"^s3://.*data-1\.png: cannot be read \(cut short\)"):
        open_image(base(shelf) / "data-1.png")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_whose_store_is_gone_stops_with_one_line_in_place_of_leaving_examples_out(
    shelf, store, monkeypatch, workers
):
    dataset = read(shelf)
    plan = RowPlanner(dataset.sizes, examples_per_step=2, tokens_per_pass=512)
    store.cut_off(monkeypatch)
    loader = StepLoader(plan, RowBatches(dataset, PixelProcessor(), "token"), workers=workers)
    with (
        closing(loader.steps(0, 1)) as steps,
        pytest.raises(StoreError, match=r"^s3://.*cannot be read") as it,
    ):
        list(next(steps).batches)
    assert "\n" not in str(it.value)


@pytest.mark.parametrize(
    ("listed", "opened"),
    daily((False, True), (True, False), beside=[(False, False), (True, True)]),
)
def test_an_object_that_was_replaced_is_read_anew(shelf, store, monkeypatch, opened, listed):
    monkeypatch.setattr(objects, "LISTED_FROM", 1 if listed else 99)
    cache = shelf / "cache"
    before = read(shelf, cache=cache)
    sizes_before = [image_size(one.path) for one in before.images]
    if opened:
        for one in before.images:
            open_image(one.path)
    # Same name and length of header: a store has no inode, only its word.
    store.put("pages/data-1.png", png(310))
    after = read(shelf, cache=cache)
    assert after.fingerprint != before.fingerprint
    sizes = [open_image(one.path).size for one in after.images]
    assert sizes == [sizes_before[0], (310, 300), sizes_before[2]]


def test_an_object_of_the_same_length_is_told_by_the_stores_word(shelf, store):
    store.put("pages/a.bmp", bitmap(1))
    path = base(shelf) / "a.bmp"
    seen = open_image(path).getpixel((0, 0))
    store.put("pages/a.bmp", bitmap(2))
    assert open_image(path).getpixel((0, 0)) == seen  # until somebody asks
    objects.object_states([objects.object_at(path)])
    assert open_image(path).getpixel((0, 0)) == (2, 2, 2)


def bitmap(shade):
    content = BytesIO()
    Image.new("RGB", (9, 9), (shade,) * 3).save(content, "BMP")
    return content.getvalue()


def test_a_missing_object_is_named_by_its_url(shelf, store):
    store.client.delete_object(Bucket=BUCKET, Key="pages/data-1.png")
    with pytest.raises(DataError, match=f"^{PAGES}/data-1.png: no such object"):
        read(shelf)
    (problem, *_) = check_file(shelf / "data.jsonl", base(shelf))
    assert problem.message.startswith(f"{PAGES}/data-1.png: no such object")


def test_a_store_whose_package_is_missing_says_which(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(StoreError, match=r"gs://shelf/a\.png: .*pip install foveal\[stores\]"):
        open_image(base(tmp_path, "gs://shelf") / "a.png")


def test_without_credentials_nothing_is_tried_twice(shelf, store, monkeypatch):
    import s3fs

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    s3fs.S3FileSystem.clear_instance_cache()
    store.asked.clear()
    with pytest.raises(StoreError, match=r"no access .*credentials"):
        open_image(base(shelf) / "data-0.png")
    assert len(store.asked) == 1
    s3fs.S3FileSystem.clear_instance_cache()


def test_what_is_kept_stays_within_its_bounds_and_the_latest_stays(shelf, store):
    each = len(png(100))
    for number in range(15):
        store.put(f"pages/{number}.png", png(100, number))
    room = base(shelf, object_cache_gb=6 * each / 1e9)
    for number in range(15):
        open_image(room / f"{number}.png")
        kept = [one for one in (shelf / "objects" / "kept").glob("*/*") if one.is_file()]
        assert sum(one.stat().st_size for one in kept) <= 7 * each
    assert len(kept) >= 4
    store.asked.clear()
    open_image(room / "14.png")
    assert store.asked == []
    open_image(room / "0.png")
    assert store.fetched_bytes() == len(png(100, 0))


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_shards_in_a_store_are_read_image_by_image(shelf, store, kind):
    shard = shelf / f"0.{kind}"
    files = sorted((shelf / "images").iterdir())
    if kind == "tar":
        with tarfile.open(shard, "w") as tar:
            for file in files:
                tar.add(file, file.name)
    else:
        with zipfile.ZipFile(shard, "w") as zipped:
            for file in files:
                zipped.write(file, file.name)
    store.put(f"shards/{shard.name}", shard.read_bytes())
    plain = read_dataset(shelf / "data.jsonl", WordProcessor())[1]
    cache = shelf / "cache"
    found = read(shelf, f"s3://{BUCKET}/shards/{shard.name}", cache)
    assert found.fingerprint == plain.fingerprint
    store.asked.clear()
    for far, near in zip(found.images, plain.images, strict=True):
        assert open_image(far.path).tobytes() == open_image(near.path).tobytes()
    assert store.fetched_bytes() == sum(file.stat().st_size for file in files)
    again = read(shelf, f"s3://{BUCKET}/shards/{shard.name}", cache)
    assert again.fingerprint == found.fingerprint


def test_a_shard_that_is_replaced_during_a_run_yields_no_other_image(shelf, store):
    files = sorted((shelf / "images").iterdir())

    def put(order):
        shard = BytesIO()
        with tarfile.open(fileobj=shard, mode="w") as tar:
            for file, name in zip(order, files, strict=True):
                tar.add(file, name.name)
        store.put("shards/0.tar", shard.getvalue())

    put(files)
    found = read(shelf, f"s3://{BUCKET}/shards/0.tar", shelf / "cache")
    put(files[1:] + files[:1])
    with pytest.raises(StoreError, match=f"s3://{BUCKET}/shards/0.tar: changed .* start again"):
        open_image(found.images[0].path)
    again = read(shelf, f"s3://{BUCKET}/shards/0.tar", shelf / "cache")
    seen = [open_image(one.path).tobytes() for one in again.images]
    assert seen == [open_image(file).tobytes() for file in files[1:] + files[:1]]


def test_examples_may_lie_in_a_store_themselves(shelf, store, monkeypatch):
    url = Path(f"s3://{BUCKET}/lists/data.jsonl")
    content = (shelf / "data.jsonl").read_bytes()
    store.put("lists/data.jsonl", content)
    file = unpacked(url, shelf / "cache")
    assert file.read_bytes() == content
    with monkeypatch.context() as patch:
        store.cut_off(patch)
        assert unpacked(url, shelf / "cache") == file
    store.put("lists/data.jsonl", content[: len(content) // 2])
    assert unpacked(url, shelf / "cache").read_bytes() == content[: len(content) // 2]
    with pytest.raises(DataError, match=f"s3://{BUCKET}/lists/none.jsonl: no such object"):
        unpacked(Path(f"s3://{BUCKET}/lists/none.jsonl"), shelf / "cache")


@pytest.mark.parametrize("compression", ["none", "snappy"])
def test_of_rows_in_a_store_one_column_of_a_row_group_is_fetched_and_kept(
    shelf, store, compression
):
    files = sorted((shelf / "images").iterdir())
    images = [file.read_bytes() for file in files]
    sounds = [np.random.default_rng(number).bytes(10**6) for number in range(3)]
    table, shard = pa.table({"image": images, "sound": sounds}), BytesIO()
    parquet.write_table(table, shard, row_group_size=2, compression=compression)
    store.put("shards/0.parquet", shard.getvalue())
    plain = read(shelf, shelf / "images")
    data = shelf / "data.jsonl"
    for row, file in enumerate(files):
        data.write_text(data.read_text().replace(file.name, f"image/{row}"))
    store.asked.clear()
    found = read(shelf, f"s3://{BUCKET}/shards/0.parquet", shelf / "cache")
    assert found.fingerprint == plain.fingerprint
    for far, near in zip(found.images, plain.images, strict=True):
        assert open_image(far.path).tobytes() == open_image(near.path).tobytes()
    headers = objects.HEADER_BYTES + sum(map(len, images))  # the file's and each image's
    assert store.fetched_bytes() < 2 * sum(map(len, images)) + headers + 1000
    store.asked.clear()
    parquet_images._reader.cache_clear()  # as in another process
    open_image(found.images[0].path)
    assert store.fetched_bytes() == 0
    for one in (shelf / "objects" / "kept").glob("*/*"):
        one.unlink()
    parquet_images._reader.cache_clear()
    store.put("shards/0.parquet", shard.getvalue()[::-1])
    with pytest.raises(StoreError, match=r"0\.parquet: changed .* start again"):
        open_image(found.images[0].path)
