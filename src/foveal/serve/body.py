"""The body of a request -> bytes, or a form's fields and files, within limits of size and time."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import dataclass

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from foveal.serve.limits import RequestError, ServerLimits
from foveal.serve.sent_images import SentFile, checked

DISCARDED = 4
"""Times the limit of a body that is read and thrown away, so that a client hears why."""

REQUEST_FIELD, PICTURE_FIELD, CLIP_FIELD = "request", "image", "video"


@dataclass(frozen=True)
class Body:
    """What a request brought."""

    request: bytes | str
    """JSON."""

    pictures: tuple[SentFile, ...] = ()
    clips: tuple[SentFile, ...] = ()


async def read_body(request: Request, limits: ServerLimits) -> Body:
    """Read a request as JSON, or as a form of one JSON field and pictures.

    Raises:
        RequestError: too large, too slow, or neither of the two.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in ("application/json", "multipart/form-data"):
        await discard(request, limits)
        raise RequestError(
            415, "send application/json, or multipart/form-data with pictures", "bad_content_type"
        )
    try:
        async with asyncio.timeout(limits.body_seconds):
            if kind == "multipart/form-data":
                return await _read_form(request, limits)
            return Body(b"".join([piece async for piece in _pieces(request, limits)]))
    except TimeoutError:
        raise RequestError(
            408, f"the body took longer than {limits.body_seconds:g} seconds", "too_slow"
        ) from None


async def discard(request: Request, limits: ServerLimits) -> None:
    """Read a refused body away: a client that still sends would not hear the answer."""
    with suppress(RequestError, TimeoutError, ClientDisconnect):
        async with asyncio.timeout(limits.body_seconds):
            async for _ in _pieces(request, limits):
                pass


async def _pieces(request: Request, limits: ServerLimits) -> AsyncGenerator[bytes, None]:
    """Pass a body on as it comes; one that is too large is read away up to a point."""
    most, stated = DISCARDED * limits.body_bytes, request.headers.get("content-length", "0")
    size = int(stated) if stated.isdecimal() else 0
    read = 0
    if size <= most:
        async for piece in request.stream():
            read += len(piece)
            size = max(size, read)
            if size <= limits.body_bytes:
                yield piece
            elif read > most:
                break
    if size > limits.body_bytes:
        raise RequestError(
            413, f"the body has more than {limits.body_bytes} bytes; send less", "body_too_large"
        )


async def _read_form(request: Request, limits: ServerLimits) -> Body:
    parser = MultiPartParser(
        request.headers,
        _pieces(request, limits),
        max_files=limits.pictures,
        max_fields=1,
        max_part_size=limits.body_bytes,
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise RequestError(400, f"the form is broken: {error.message}", "bad_form") from error
    asked: str | None = None
    files: dict[str, list[SentFile]] = {PICTURE_FIELD: [], CLIP_FIELD: []}
    try:
        for field, value in form.multi_items():
            if isinstance(value, UploadFile) and field in files:
                kind = "picture" if field == PICTURE_FIELD else "clip"
                name = f"{kind} {len(files[field]) + 1} ({(value.filename or 'unnamed')[:80]})"
                files[field].append(checked(SentFile(name, await value.read()), limits))
            elif isinstance(value, str) and field == REQUEST_FIELD:
                asked = value
            else:
                raise RequestError(
                    400,
                    f"the form has a field {field[:40]!r}; {REQUEST_FIELD!r} holds the JSON and "
                    f"each {PICTURE_FIELD!r} a file with a picture, each {CLIP_FIELD!r} a clip",
                    "bad_form",
                )
    finally:
        await form.close()
    if asked is None:
        raise RequestError(
            400, f"the form has no field {REQUEST_FIELD!r} with the JSON", "bad_form"
        )
    return Body(asked, tuple(files[PICTURE_FIELD]), tuple(files[CLIP_FIELD]))
