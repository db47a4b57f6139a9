"""Stores beside S3: the hub's data sets and Google's, as far as a machine alone can ask them."""

import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from urllib import request

import pytest
from loopback_hub import DATASET, loopback_hub
from tiny import pages
from words import WordProcessor

from foveal.config import DataSettings
from foveal.data.dataset import read_dataset
from foveal.data.images import objects
from foveal.data.images.media import open_image
from foveal.data.images.objects import image_base
from foveal.errors import DataError, StoreError

HUB_PAGES = f"hf://datasets/{DATASET}/pages"


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    monkeypatch.setattr(objects, "PAUSE_SECONDS", 0.001)
    pages(tmp_path, 3, 2)
    return tmp_path


@pytest.fixture
def hub(shelf, monkeypatch):
    with loopback_hub(monkeypatch) as found:
        for file in (shelf / "images").iterdir():
            found.files[f"pages/{file.name}"] = file.read_bytes()
        yield found


def base(shelf, images):
    return image_base(DataSettings(images=images, object_cache=shelf / "objects"))


def read(shelf, images):
    return read_dataset(shelf / "data.jsonl", WordProcessor(), base(shelf, images))[1]


def same_images(shelf, images):
    there, here = read(shelf, images), read_dataset(shelf / "data.jsonl", WordProcessor())[1]
    assert there.fingerprint == here.fingerprint
    for far, near in zip(there.images, here.images, strict=True):
        assert open_image(far.path).tobytes() == open_image(near.path).tobytes()
    return there


def test_images_of_a_data_set_on_the_hub_are_fetched_once_and_its_folder_not_listed_for_each(
    shelf, hub
):
    hub.files["pages/data-0.png"] += bytes(10**6)  # behind the image
    (shelf / "images" / "data-0.png").write_bytes(hub.files["pages/data-0.png"])
    read(shelf, HUB_PAGES)
    assert hub.fetched_bytes() < 3 * objects.HEADER_BYTES
    found = same_images(shelf, HUB_PAGES)
    hub.asked.clear()
    for one in found.images:
        open_image(one.path)
    assert hub.asked == []
    for one in (shelf / "objects" / "kept").glob("*/*"):
        one.unlink()
    for one in found.images:
        open_image(one.path)
    assert hub.fetched_bytes() == sum(map(len, hub.files.values()))
    assert len(hub.asked) <= len(found.images) + 3  # and what is there at all


def test_an_object_of_the_hub_that_was_replaced_is_read_anew_at_the_next_start(shelf, hub):
    before = same_images(shelf, HUB_PAGES)
    first, second, _ = hub.files
    hub.files[first] = hub.files[second]
    after = read(shelf, HUB_PAGES)
    assert open_image(after.images[0].path).size == open_image(after.images[1].path).size
    assert before.fingerprint != after.fingerprint


def test_a_thread_that_listed_the_hub_before_reads_no_object_by_its_former_length(shelf, hub):
    """Fsspec has a store for each thread, and each believes what it listed."""
    with ThreadPoolExecutor(1) as thread:
        path = read(shelf, HUB_PAGES).images[0].path
        assert thread.submit(open_image, path).result().size == (60, 40)
        first, second, _ = hub.files
        hub.files[first] = hub.files[second]
        read(shelf, HUB_PAGES)
        assert thread.submit(open_image, path).result().size == (80, 40)


def test_the_hub_is_asked_again_where_it_fails_for_a_moment_and_not_for_ever(
    shelf, hub, monkeypatch
):
    import huggingface_hub.hf_file_system as module

    usual = module.http_backoff
    monkeypatch.setattr(module, "http_backoff", lambda *a, **o: usual(*a, max_retries=0, **o))
    path = base(shelf, HUB_PAGES) / "data-0.png"
    hub.failures = objects.ATTEMPTS - 1
    assert open_image(path).size == (60, 40)
    hub.failures = objects.ATTEMPTS
    with pytest.raises(StoreError, match=r"^hf://.*data-1\.png: cannot be read .* tried 3 times"):
        open_image(path.with_name("data-1.png"))
    assert hub.failures == 0


def test_a_data_set_that_one_may_not_read_is_named_with_the_way_to_log_in(shelf, hub):
    hub.refused = True
    with pytest.raises((StoreError, DataError), match=r"hf://datasets/someone/shelf") as found:
        read(shelf, HUB_PAGES)
    assert re.search(r"no access .*hf auth login", str(found.value))


def test_what_is_not_on_the_hub_is_named_by_its_url(shelf, hub):
    del hub.files["pages/data-1.png"]
    with pytest.raises(DataError, match=f"^{HUB_PAGES}/data-1.png: no such object"):
        read(shelf, HUB_PAGES)


@contextmanager
def loopback_google(patch):
    """Emulate Google's store; yields what puts an object into its bucket."""
    gcsfs = pytest.importorskip("gcsfs")
    emulator = pytest.importorskip("gcp_storage_emulator.server")
    server = emulator.create_server("127.0.0.1", 0, in_memory=True, default_bucket="shelf")
    server.start()
    address = f"http://127.0.0.1:{server._api._httpd.socket.getsockname()[1]}"
    patch.setenv("STORAGE_EMULATOR_HOST", address)
    patch.setenv("NO_PROXY", "127.0.0.1")
    patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # asks Google itself about buckets
    gcsfs.GCSFileSystem.clear_instance_cache()

    def put(name, content):
        url = f"{address}/upload/storage/v1/b/shelf/o?uploadType=media&name={name}"
        request.urlopen(request.Request(url, content, {"Content-Type": "image/png"})).close()

    try:
        yield put
    finally:
        server.stop()
        gcsfs.GCSFileSystem.clear_instance_cache()


@pytest.mark.slow
def test_images_of_a_bucket_of_googles_are_those_of_the_folder(shelf, monkeypatch):
    files = sorted((shelf / "images").iterdir())
    with loopback_google(monkeypatch) as put:
        for file in files:
            put(f"pages/{file.name}", file.read_bytes())
        same_images(shelf, "gs://shelf/pages")
        put("pages/data-0.png", files[1].read_bytes())
        images = read(shelf, "gs://shelf/pages").images
        assert open_image(images[0].path).tobytes() == open_image(images[1].path).tobytes()
        with pytest.raises(DataError, match=r"^gs://shelf/none/data-0.png: no such object"):
            read(shelf, "gs://shelf/none")
