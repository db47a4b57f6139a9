"""What a row names as its pictures (bytes, paths, addresses, what wraps them) -> `DraftImage`s."""

import base64
import re
from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Any
from urllib.parse import unquote

from foveal.data.convert.draft import DraftImage
from foveal.data.convert.sources.source import Entry
from foveal.data.convert.sources.values import UnfitError, present

Find = Callable[[str], Entry | bytes | None]
"""From a path as a row writes it to the file, or its content; none: there is no such picture."""

WRAPPERS = ("bytes", "path", "image", "image_url", "url")
"""Keys of a mapping that wraps a picture, the surest first."""

_ENDINGS = {b"\x89PNG": "png", b"\xff\xd8": "jpg", b"GIF8": "gif", b"RIFF": "webp", b"BM": "bmp"}
_LONGEST_PATH = 1024

_UPLOADED = re.compile(r"/data/(?:upload/\d+/[0-9a-f]{8}-(.+)|local-files/\?d=(.+))$")
"""Address that Label Studio gives a picture -> its name before, or its path below the folder."""


def pictures_of(value: Any, split: str, find: Find) -> list[DraftImage]:
    """Read one picture or a list of them.

    Args:
        value: none, or anything.
        split: first folder of the pictures' names.
        find: looks a path up.

    Raises:
        UnfitError: one of them cannot be had.
    """
    value = present(value)
    if value is None:
        return []
    return [_picture(one, split, find) for one in (value if isinstance(value, list) else [value])]


def _picture(value: Any, split: str, find: Find) -> DraftImage:
    if isinstance(value, Mapping):  # of bytes and path, as Arrow holds pictures; or of an address
        value = next((value[key] for key in WRAPPERS if key in value), None)
        return _picture(value, split, find)
    if isinstance(value, bytes):
        return DraftImage(value, _target(split, value))
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)  # an id, as COCO's and Visual Genome's
    if not isinstance(value, str):
        raise UnfitError("a picture that is neither bytes nor a path")
    if value.startswith("data:"):
        content = _decoded(value.partition(",")[2])
        if content is None:
            raise UnfitError("a picture in broken base64")
        kind = re.match(r"data:image/(\w+)", value)
        return DraftImage(content, _target(split, content, kind[1] if kind else "img"))
    if re.match(r"(https?|s3|gs)://", value):
        raise UnfitError("a picture on the web; fetch it and name its file")
    if len(value) > _LONGEST_PATH:
        if not (content := _decoded(value)):
            raise UnfitError("a picture that is neither bytes nor a path")
        return DraftImage(content, _target(split, content))
    found = find(value.removeprefix("file://"))
    if found is None and (uploaded := _UPLOADED.match(value)):
        found = find(unquote(uploaded[1] or uploaded[2]))
    if found is None:
        raise UnfitError("no picture of that name")
    # Folders are kept: LLaVA's mixture has files of one name in several.
    name = f"{split}/{found.name}" if isinstance(found, Entry) else _target(split, found)
    return DraftImage(found, name)


def _decoded(text: str) -> bytes | None:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except ValueError:
        return None


def _target(split: str, content: bytes, ending: str | None = None) -> str:
    """Name a picture by its content, so that it is stored once."""
    return f"{split}/{sha256(content).hexdigest()[:20]}.{ending or ending_of(content)}"


def ending_of(content: bytes) -> str:
    """Tell the ending that a picture's file should have from how it begins."""
    return next((end for start, end in _ENDINGS.items() if content.startswith(start)), "img")
