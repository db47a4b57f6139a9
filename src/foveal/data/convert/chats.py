"""Conversations in the JSON of other trainers (LLaVA, ShareGPT, OpenAI messages) -> drafts."""

import base64
import re
from collections.abc import Iterator
from typing import Any

from foveal.data.convert.draft import Draft, LeftOut, Options, Picture
from foveal.data.convert.folders import SPLITS
from foveal.data.convert.reading import read_json, read_lines
from foveal.data.convert.source import Entry, Source
from foveal.data.example import Turn
from foveal.data.message import write_places
from foveal.errors import DataError

ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
}
"""What others call who speaks -> what we call them."""

_PLACE = "<image>"


def convert_llava(source: Source, options: Options) -> list[Draft | LeftOut]:
    """LLaVA's JSON: `image` and `conversations` of `from` and `value`, `<image>` in the text."""
    return _convert(source)


def convert_sharegpt(source: Source, options: Options) -> list[Draft | LeftOut]:
    """Messages of `role` and `content`, with image parts, or `<image>` and a list `images`."""
    return _convert(source)


def _convert(source: Source) -> list[Draft | LeftOut]:
    drafts: list[Draft | LeftOut] = []
    for file in (*source.match("*.json"), *source.match("*.jsonl")):
        for number, row in enumerate(_rows(file), start=1):
            name = f"{file}, entry {number}"
            try:
                drafts.append(_conversation(source, file, row))
            except _UnfitError as error:
                drafts.append(LeftOut(name, str(error)))
    if not any(isinstance(draft, Draft) for draft in drafts):
        reason = f": {drafts[0].reason}" if drafts and isinstance(drafts[0], LeftOut) else ""
        raise DataError(f"{source.path}: no conversation in it{reason}")
    return drafts


class _UnfitError(Exception):
    """A conversation that cannot be an example, and why."""


def _rows(file: Entry) -> Iterator[Any]:
    if file.suffix == ".jsonl":
        yield from read_lines(file)
        return
    rows = read_json(file)
    if isinstance(rows, list):
        yield from rows


def _conversation(source: Source, file: Entry, row: Any) -> Draft:
    try:
        messages = row.get("conversations") or row["messages"]
        spoken = [_message(message) for message in messages]
    except (KeyError, TypeError, AttributeError):
        raise _UnfitError("no list of messages in it") from None
    images = row.get("images") or row.get("image") or []
    waiting = [images] if isinstance(images, str) else list(images)
    split = _split(file)
    system = "\n".join(text for role, text, _ in spoken if role == "system")
    spoken = [message for message in spoken if message[0] != "system"]
    if not spoken or [role for role, _, _ in spoken] != ["user", "assistant"] * (len(spoken) // 2):
        raise _UnfitError("user and assistant do not take turns")
    media: list[Picture] = []
    turns: list[Turn] = []
    for asked, answered in zip(spoken[::2], spoken[1::2], strict=True):
        text, parts = asked[1], asked[2]
        places = text.count(_PLACE) - len(parts)
        if places > len(waiting):
            raise _UnfitError("more <image> than pictures")
        if not turns and not any(_PLACE in text for _, text, _ in spoken):
            places = len(waiting)  # no place is said: before the first question
        here = [*parts, *waiting[:places]]
        del waiting[:places]
        pictures = [_picture(source, split, image) for image in here]
        media += pictures
        user = _number_places(text)
        turns.append(
            Turn(
                images=tuple(picture.target for picture in pictures),
                user=f"{system}\n{user}" if system and not turns else user,
                assistant=answered[1].strip(),
            )
        )
    if waiting:
        raise _UnfitError("more pictures than <image>")
    return Draft(split, tuple(turns), tuple(media))


def _message(message: Any) -> tuple[str, str, list[Any]]:
    """Read who speaks, what, and the pictures in between."""
    role = ROLES.get(message.get("from") or message["role"], "")
    content = message["value"] if "value" in message else message["content"]
    if isinstance(content, str):
        return role, content, []
    parts: list[str | None] = []
    images = []
    for part in content:
        if part["type"] == "text":
            parts.append(part.get("text") or "")
        else:
            image = (
                part.get("image") or part.get("image_url") or part.get("path") or part.get("url")
            )
            images.append(image["url"] if isinstance(image, dict) else image)
            parts.append(None)
    return role, write_places(parts, _PLACE), images


def _number_places(text: str) -> str:
    """Drop places in front, where our pictures stand anyway; number them where words come first."""
    body = re.sub(rf"^(\s*{_PLACE})+\s*", "", text)
    if _PLACE not in body:
        return body.strip()
    numbers = iter(range(1, text.count(_PLACE) + 1))
    return re.sub(_PLACE, lambda _: f"<|image_{next(numbers)}|>", text).strip()


def _picture(source: Source, split: str, image: Any) -> Picture:
    if not isinstance(image, str) or not image:
        raise _UnfitError("a picture that is no path")
    if image.startswith("data:"):
        try:
            content = base64.b64decode(image.partition(",")[2], validate=True)
        except ValueError:
            raise _UnfitError("a picture in broken base64") from None
        from hashlib import sha256

        kind = re.match(r"data:image/(\w+)", image)
        ending = kind[1] if kind else "img"
        return Picture(content, f"{split}/{sha256(content).hexdigest()[:20]}.{ending}")
    if re.match(r"https?://", image):
        raise _UnfitError("a picture on the web; fetch it and name its file")
    entry = source.find(image.removeprefix("file://"))
    if entry is None:
        raise _UnfitError("no picture of that name")
    # Folders are kept: LLaVA's mixture has files of one name in several.
    return Picture(entry, f"{split}/{entry.name}")


def _split(file: Entry) -> str:
    """`llava_val.json` -> val; what names no split is train."""
    words = re.split(r"[^a-z]+", file.stem.lower())
    return next((SPLITS[word] for word in words if word in SPLITS), "train")
