"""An object of a store, by its URL -> a path, its state, its bytes; a store is a folder.

`s3://bucket/pages/1.png` is written `CACHE/by-url/s3:/bucket/pages/1.png`. Such a path says all
that is needed to open it, so it goes wherever that of a file goes; what it leads to is fetched when
it is opened, and kept in CACHE. fsspec knows the stores.
"""

import errno
import re
import time
from collections.abc import Callable, Iterable
from functools import partial
from hashlib import blake2b
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

from foveal.config import DataSettings
from foveal.data.images.kept_bytes import (
    Opened,
    ReadAtPlaces,
    bound_kept,
    keep,
    open_kept,
    read_state,
    write_state,
)
from foveal.data.parallel import side_by_side
from foveal.errors import ConfigError, StoreError, one_line

ATTEMPTS = 3
"""Times that a store is asked, where it might answer yet; its own library may try more often."""

PAUSE_SECONDS = 0.5
"""Before the second attempt; twice as long before each further one."""

LISTED_FROM = 20
"""Objects of one folder that are worth listing it: a page of a listing tells of a thousand."""

HEADER_BYTES = 2**16
"""What is fetched of an image whose header is read; most headers lie in it."""

BLOCK_BYTES = 2**23
"""What is fetched by one request."""

VERSION_KEYS = ("ETag", "etag", "generation", "blob_id", "md5Hash", "LastModified", "mtime")
"""What stores call that which changes with an object; the first that is said counts."""

BY_URL = "/by-url/"
"""Part of the path of every object, and of hardly any file's."""

_URL = re.compile(r"([a-z][a-z0-9+.-]+):(?:/+(.*))?", re.DOTALL)
_PLACE = re.compile(r"(.+)/by-url/([a-z][a-z0-9+.-]+):(?:/(.*))?", re.DOTALL)
_NO_STORES = ("file", "local", "data")

_Result = TypeVar("_Result")


class StoredObject(NamedTuple):
    """An object of a store, or a folder of them."""

    cache: Path
    """Folder that keeps what was fetched."""

    scheme: str
    """As in `s3`."""

    key: str
    """Behind the scheme: bucket and name."""

    @property
    def url(self) -> str:
        """As people write it."""
        return f"{self.scheme}://{self.key}"

    @property
    def path(self) -> Path:
        """Write it as a path, which `object_at` reads."""
        return self.cache / "by-url" / f"{self.scheme}:" / self.key


def object_at(path: str | Path) -> StoredObject | None:
    """Read the path of an object; none: it is that of a file."""
    text = str(path)
    found = _PLACE.fullmatch(text) if BY_URL in text else None
    return found and StoredObject(Path(found[1]), found[2], found[3] or "")


def called(path: str | Path) -> str:
    """Call a path as people do: that of an object by its URL."""
    one = object_at(path)
    return one.url if one else str(path)


def read_url(written: str | Path, cache: Path) -> StoredObject | None:
    """Read a URL of a store, or what a path keeps of it; none: it is no URL.

    Raises:
        ConfigError: it is no store's, or has a part that no path can have.
    """
    found = _URL.fullmatch(str(written))
    if not found:
        return None
    if found[1] in _NO_STORES:
        raise ConfigError(f"{written}: give the path alone, without {found[1]}://")
    key = (found[2] or "").rstrip("/")
    if any(part in ("", ".", "..") for part in key.split("/")[1:]):
        raise ConfigError(f"{written}: a part of it is empty or dots; give the object another name")
    return StoredObject(cache, found[1], key)


def image_base(settings: DataSettings, images: Path | None = None) -> Path | None:
    """Find the folder that image paths start from, where it is named by the URL of a store, too.

    Args:
        settings: that say where, and what may be kept of objects.
        images: named in place of theirs.

    Raises:
        ConfigError: there is no such store, or the folder that keeps cannot be written.
    """
    images = images or settings.images
    cache = settings.object_cache or Path.home() / ".cache" / "foveal" / "objects"
    one = images and read_url(images, cache.resolve())
    if not one:
        return images
    try:
        bound_kept(one.cache, int(settings.object_cache_gb * 1e9))
    except OSError as error:
        raise ConfigError(
            f"{error.filename}: {error.strerror}; name another folder, data.object_cache=..."
        ) from error
    return one.path


def object_state(one: StoredObject) -> list[int]:
    """Ask for the state of one object; see `object_states`."""
    return object_states([one])[one]


def object_states(objects: Iterable[StoredObject]) -> dict[StoredObject, list[int]]:
    """Ask for the states of objects, which tell each from any that had its name before.

    Where those of one folder are many, it is listed. Of a store that cannot be reached objects are
    taken to be what they were, where they are kept.

    Returns:
        The bytes of each, a digest of what the store says of its version, and two zeros.

    Raises:
        FileNotFoundError: there is no such object.
        StoreError: nobody can tell.
    """
    folders: dict[StoredObject, list[StoredObject]] = {}
    for one in dict.fromkeys(objects):
        folder = one._replace(key=one.key.rpartition("/")[0])
        folders.setdefault(folder, []).append(one)
    states: dict[StoredObject, list[int]] = {}
    few: list[StoredObject] = []
    for folder, wanted in folders.items():
        try:
            states |= _states_listed(folder, wanted) if len(wanted) >= LISTED_FROM else {}
        except StoreError as error:
            states |= {one: _state_before(one, error) for one in wanted}
        few += [one for one in wanted if one not in states]
    try:
        states |= {one: _state_now(one) for one in few[:1]}  # before all wait for one that is gone
        states |= zip(few[1:], side_by_side(_state_now, few[1:]), strict=True)
    except StoreError as error:
        states |= {one: _state_before(one, error) for one in few}
    return states


def _states_listed(
    folder: StoredObject, wanted: Iterable[StoredObject]
) -> dict[StoredObject, list[int]]:
    """List a folder; what it does not hold is left out."""
    if folder.scheme in ("http", "https"):  # a page of links says nothing of their states
        return {}
    try:
        found = _ask(folder, lambda files, path: files.ls(path, detail=True), anew=True)
    except FileNotFoundError:
        return {}
    # As stores call them: some begin with a slash, and Hugging Face's with `datasets`.
    infos = {str(info["name"]).lstrip("/"): info for info in found}
    states = {one: _state(infos[one.key], one) for one in wanted if one.key in infos}
    for one, state in states.items():
        _note(one, state)
    return states


def _state_now(one: StoredObject) -> list[int]:
    state = _state(_ask(one, lambda files, path: files.info(path), anew=True), one)
    _note(one, state)
    return state


def _state_before(one: StoredObject, error: StoreError) -> list[int]:
    """Take an object for what it was, where that is known and only the way to it is cut."""
    known = read_state(one.cache, one.url) or read_state(one.cache, one.url, "kept")
    if known is None or not error.may_pass:
        raise error
    return known


def _note(one: StoredObject, state: list[int]) -> None:
    """Have what is kept of an object not be taken for what it is by now."""
    known = read_state(one.cache, one.url), read_state(one.cache, one.url, "kept")
    if any(former not in (None, state) for former in known):
        write_state(one.cache, one.url, state)


def _state(info: dict[str, Any], one: StoredObject) -> list[int]:
    if info["type"] == "directory":
        raise FileNotFoundError(errno.ENOENT, "no such object", one.url)
    said = next((str(info[key]) for key in VERSION_KEYS if info.get(key)), "")
    version = blake2b(said.encode(), digest_size=8).digest()
    return [int(info["size"]), int.from_bytes(version, "little", signed=True), 0, 0]


def open_object(one: StoredObject, start: int = 0, length: int | None = None) -> Opened:
    """Open an object, or a stretch of it; it is fetched unless it is kept.

    Raises:
        FileNotFoundError: there is none.
        StoreError: it cannot be fetched, or not be kept.
    """
    name, expected = _kept_name(one, start, length)
    kept = open_kept(one.cache, name, expected)
    # Where another version was known before, a thread's own listing may still tell of that one.
    anew = expected is not None
    return kept or _ask(one, partial(_fetch, one, name, start, length), anew)


def _kept_name(one: StoredObject, start: int, length: int | None) -> tuple[str, list[int] | None]:
    """Name what is kept of an object, and the state that it must be of; none: any."""
    expected = read_state(one.cache, one.url)
    if length is None:
        return one.url, expected
    if expected is None:  # else bytes of an archive that stood there before might do
        expected = object_state(one)
        write_state(one.cache, one.url, expected)
    return f"{start}+{length} of {one.url}", expected


def _fetch(
    one: StoredObject, name: str, start: int, length: int | None, files: Any, path: str
) -> Opened:
    # Without fsspec's cache: it would fetch far more than is asked for. S3 gives the parts of one
    # version alone, the one that `details` tells of.
    with files.open(path, "rb", cache_type="none") as remote:
        info = getattr(remote, "details", None) or files.info(path)
        state = _state(info, one)
        noted = read_state(one.cache, one.url)
        if length is not None and state != noted:  # what lies there may be another image by now
            raise StoreError(f"{one.url}: changed since it was looked into; start again")
        end = state[0] if length is None else start + length

        def fill(file: BinaryIO) -> None:
            remote.seek(start)
            while left := end - remote.tell():
                block = remote.read(min(left, BLOCK_BYTES))
                if not block:
                    raise EOFError("cut short")  # not of the disk that is written to
                file.write(block)

        opened = keep(one.cache, name, state, fill)
    _note(one, state)
    return opened


def open_remote(
    one: StoredObject, block_bytes: int, start: int = 0, length: int | None = None
) -> Opened:
    """Open an object, or a stretch of it, of which little is read, as a header.

    It is what is kept, or else read by requests for blocks, and not kept.

    Raises:
        FileNotFoundError: there is none.
        StoreError: it cannot be read.
    """
    kept = open_kept(one.cache, *_kept_name(one, start, length))
    if kept:
        return kept
    if length is None:
        length = int(_ask(one, lambda files, path: files.info(path))["size"])
    # The hub's library would read megabytes ahead.
    how = {"cache_type": "none"} if one.scheme == "hf" else {}

    def read_at(place: int, length: int) -> bytes:
        span = {"start": start + place, "end": start + place + length}
        return _ask(one, lambda files, path: bytes(files.cat_file(path, **span, **how)))

    return BufferedReader(ReadAtPlaces(length, read_at), block_bytes)


def _ask(one: StoredObject, question: Callable[[Any, str], _Result], anew: bool = False) -> _Result:
    """Ask a store something, again where it might answer yet.

    Args:
        one: of what is asked.
        question: of the store and the object's name there.
        anew: whether what the store said before does not count.

    Raises:
        FileNotFoundError: there is no such object.
        StoreError: it does not answer, or not to us.
    """
    for left in reversed(range(ATTEMPTS)):
        try:
            files = _store(one.scheme, anew)
            return question(files, files._strip_protocol(one.url))
        except StoreError:
            raise
        except Exception as error:  # libraries of stores raise whatever they like
            if lasting := _lasting_error(one.url, error):
                raise lasting from error
            if isinstance(error, FileNotFoundError):
                raise FileNotFoundError(errno.ENOENT, "no such object", one.url) from error
            if not left:
                raise StoreError(
                    f"{one.url}: cannot be read ({one_line(error, 300)}), tried {ATTEMPTS} "
                    "times; mend the connection and run the same command again",
                    may_pass=True,
                ) from error
            time.sleep(PAUSE_SECONDS * 2 ** (ATTEMPTS - 1 - left))
    raise AssertionError("the last attempt returns or raises")


def _store(scheme: str, anew: bool) -> Any:
    """Open a store; a process that was forked opens its own."""
    import fsspec

    # What was listed once would be believed for good, and an object replaced since be refused.
    files = fsspec.filesystem(scheme, use_listings_cache=False)
    if anew or scheme != "hf":  # whose files are asked for by listing their folder
        files.invalidate_cache()
    return files


def _lasting_error(url: str, error: Exception) -> StoreError | None:
    """Say what stands in the way of an object for good; none: it may be there another time.

    Args:
        url: of the object.
        error: of its store's library.
    """
    scheme = url.partition(":")[0]
    if isinstance(error, ImportError | ValueError):
        return StoreError(f"{url}: {one_line(error, 300)}; {_package(scheme)}")
    if _is_refusal(error):
        return StoreError(
            f"{url}: no access ({one_line(error, 300)}); give credentials that may read it"
            f"{_where_credentials(scheme)}"
        )
    return None


def _is_refusal(error: Exception) -> bool:
    """Tell whether a store answers, but not us; the hub calls what is closed to us missing."""
    answer = getattr(error.__cause__, "response", None)
    return (
        isinstance(error, PermissionError)
        or "Credentials" in type(error).__name__
        or getattr(answer, "status_code", None) in (401, 403)
    )


def _package(scheme: str) -> str:
    if scheme in ("s3", "gs", "gcs"):
        return "pip install foveal[stores]"
    return "check the URL" if scheme == "hf" else "install the package that fsspec wants for it"


def _where_credentials(scheme: str) -> str:
    if scheme == "s3":
        return ", as `aws configure` writes them; a public bucket: FSSPEC_S3_ANON=true"
    return ": hf auth login" if scheme == "hf" else ""
