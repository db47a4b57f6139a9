"""Images in zip and tar files are read where they lie, as those in a folder are."""

import errno
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image
from tiny import pages
from words import WordProcessor

from foveal.data.checking.check import check_file
from foveal.data.checking.overlap import describe_overlap
from foveal.data.dataset import read_dataset
from foveal.data.images import archive_index
from foveal.data.images.archives import containing_file, member_at, open_stored, size_bytes
from foveal.data.images.image_folder import ImageFolder
from foveal.data.images.media import image_identity, image_size, open_image
from foveal.errors import DataError


def pack(kind, archive, folder):
    """Put the files of a folder into an archive, as three programs would."""
    files = sorted(folder.iterdir())
    if kind == "tar":
        with tarfile.open(archive, "w") as tar:
            for file in files:
                tar.add(file, f"./{file.name}")
        return
    method = {"zip": zipfile.ZIP_STORED, "deflated zip": zipfile.ZIP_DEFLATED}[kind]
    with zipfile.ZipFile(archive, "w", method) as zipped:
        zipped.mkdir("empty")
        for file in files:
            zipped.write(file, file.name)


def place(folder, kind):
    return folder / ("pages.tar" if kind == "tar" else "pages.zip")


KINDS = pytest.mark.parametrize("kind", ["tar", "zip", "deflated zip"])


@pytest.fixture
def shelf(tmp_path):
    pages(tmp_path / "plain", 3, 2)
    (tmp_path / "packed").mkdir()
    return tmp_path


def packed(shelf, kind):
    """The same examples, whose images lie in an archive beside them."""
    archive = place(shelf / "packed", kind)
    pack(kind, archive, shelf / "plain" / "images")
    text = (shelf / "plain" / "data.jsonl").read_text().replace("data-", f"{archive.name}/data-")
    (shelf / "packed" / "data.jsonl").write_text(text)
    return shelf / "packed" / "data.jsonl"


@KINDS
@pytest.mark.parametrize("cached", [False, True])
def test_images_in_an_archive_are_those_of_the_folder_that_was_packed(shelf, kind, cached):
    cache = shelf / "cache" if cached else None
    _, plain = read_dataset(shelf / "plain" / "data.jsonl", WordProcessor())
    for _ in range(2):
        _, found = read_dataset(packed(shelf, kind), WordProcessor(), cache=cache)
        assert found.sizes.tokens.tolist() == plain.sizes.tokens.tolist()
        for one, other in zip(found.images, plain.images, strict=True):
            assert containing_file(one.path) == place(shelf / "packed", kind)
            assert one.path.name == other.path.name
            assert np.array_equal(open_image(one.path), open_image(other.path))
            assert image_identity(one.path) == image_identity(other.path)
            assert one.shape == other.shape
            if kind != "deflated zip":
                assert size_bytes(one.path) == size_bytes(other.path)
    assert list(check_file(shelf / "packed" / "data.jsonl")) == []
    if kind != "deflated zip":
        assert describe_overlap(plain, found).startswith("6 of 6 validation examples")


@KINDS
def test_an_archive_may_be_the_images_folder_itself(shelf, kind):
    archive = place(shelf / "packed", kind)
    pack(kind, archive, shelf / "plain" / "images")
    data = shelf / "plain" / "data.jsonl"
    _, found = read_dataset(data, WordProcessor(), images=archive)
    assert [containing_file(one.path) for one in found.images] == [archive] * 3
    folder = ImageFolder(data, archive)
    for outside in ("../../plain/images/data-0.png", "/etc/hostname"):
        with pytest.raises(DataError, match="lies outside"):
            folder.find(outside)
    with pytest.raises(DataError, match=r"image data-9\.png is not in .*pages"):
        folder.find("data-9.png")


def test_a_header_is_read_without_the_rest_of_the_image(shelf, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 256, (700, 900, 3), np.uint8)
    folder = shelf / "large"
    folder.mkdir()
    Image.fromarray(noise).save(folder / "a.png")  # 1.9 MB, and nothing to be packed
    pack("tar", shelf / "large.tar", folder)
    path = ImageFolder(shelf / "data.jsonl", shelf / "large.tar").find("a.png")
    read = []
    usual = archive_index.os.pread
    monkeypatch.setattr("os.pread", lambda *given: read.append(given[1]) or usual(*given))
    assert image_size(path) == (900, 700)
    assert sum(read) <= 2**17
    with open_stored(path) as file:
        assert file.read() == (folder / "a.png").read_bytes()
        assert file.seek(-4, 2) == size_bytes(path) - 4
        assert len(file.read()) == 4


@KINDS
def test_an_archive_that_was_packed_anew_is_looked_into_anew(shelf, kind):
    cache = shelf / "cache"
    data = packed(shelf, kind)
    _, before = read_dataset(data, WordProcessor(), cache=cache)
    for number in range(3):  # in another order, and another size
        Image.new("L", (300, 40)).save(shelf / "plain" / "images" / f"data-{number}.png")
    Image.new("L", (30, 40)).save(shelf / "plain" / "images" / "a-first.png")
    pack(kind, place(shelf / "packed", kind), shelf / "plain" / "images")
    _, after = read_dataset(data, WordProcessor(), cache=cache)
    assert [open_image(one.path).size for one in after.images] == [(300, 40)] * 3
    assert after.fingerprint != before.fingerprint


def test_an_index_is_made_once_for_all_processes(shelf, monkeypatch):
    pack("tar", shelf / "pages.tar", shelf / "plain" / "images")
    path = shelf / "pages.tar" / "data-1.png"
    found = archive_index.find_member(path, shelf / "cache")
    archive_index._index.cache_clear()
    monkeypatch.setattr(archive_index, "_read_index", lambda _: pytest.fail("read again"))
    assert archive_index.find_member(path, shelf / "cache") == found
    assert member_at(found.path) == found


def test_of_two_members_with_one_name_the_last_is_taken_as_unpacking_leaves_it(shelf):
    with tarfile.open(shelf / "pages.tar", "w") as tar:
        for number in (0, 1):
            tar.add(shelf / "plain" / "images" / f"data-{number}.png", "page.png")
    found = archive_index.find_member(shelf / "pages.tar" / "page.png")
    with open_stored(found.path) as file:
        assert file.read() == (shelf / "plain" / "images" / "data-1.png").read_bytes()


@pytest.mark.parametrize("ending", [".tar", ".zip"])
def test_a_broken_archive_is_named(shelf, ending):
    archive = shelf / f"pages{ending}"
    pack(ending[1:], archive, shelf / "plain" / "images")
    whole = archive.read_bytes()
    for broken in (b"no archive at all", whole[:-11_000], b""):
        archive.write_bytes(broken)
        with pytest.raises(DataError, match=r"pages\.(zip|tar)"):
            ImageFolder(shelf / "data.jsonl", archive).find("data-2.png")


def test_an_archive_that_may_not_be_read_is_no_full_disk(shelf, monkeypatch):
    data = packed(shelf, "tar")

    def refuse(path, *_):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(archive_index, "open_stored", refuse)
    with pytest.raises(DataError, match=r":1 \(.*pages\.tar: Permission denied; give an archive"):
        read_dataset(data, WordProcessor(), cache=shelf / "cache")


def test_a_packed_image_that_is_broken_is_named_and_left_to_whoever_opens_it(shelf):
    archive = shelf / "pages.zip"
    pack("deflated zip", archive, shelf / "plain" / "images")
    path = ImageFolder(shelf / "data.jsonl", archive).find("data-0.png")
    member = member_at(path)
    content = bytearray(archive.read_bytes())
    content[member.start : member.start + 8] = b"\xff" * 8
    archive.write_bytes(content)
    with pytest.raises(DataError, match=r"data-0\.png: broken archive"):
        open_image(path)
    archive.unlink()
    with pytest.raises(DataError, match=r"data-0\.png: No such file"):
        open_image(path)
    assert size_bytes(path) == -1


def test_a_zip_that_is_packed_in_a_rare_way_is_refused_with_a_remedy(shelf):
    with zipfile.ZipFile(shelf / "pages.zip", "w", zipfile.ZIP_LZMA) as zipped:
        zipped.write(shelf / "plain" / "images" / "data-0.png", "a.png")
    with pytest.raises(DataError, match=r"pages\.zip: a\.png is .* rare way; zip it anew"):
        ImageFolder(shelf / "data.jsonl", shelf / "pages.zip").find("a.png")
