"""What a request may cost, how long it may take, what is counted of it, and what refuses it."""

import math
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
"""Ends of the ranges that times are counted in."""


@dataclass(frozen=True)
class ServerLimits:
    """Limits of an endpoint; the defaults suit one GPU and people who know each other."""

    places: int = 64
    """Requests that are read, wait or run at a time; the next one is told to come back."""

    running: int = 16
    """Answers that are written at a time; the others wait."""

    kept_images: int = 8
    """Prompts' beginnings with images that stay read, for the next question about them."""

    body_bytes: int = 32 * 2**20
    """Of a request, images and all."""

    image_bytes: int = 16 * 2**20
    """Of one image or clip, as a file."""

    images: int = 64
    """Of a request, clips counted in."""

    pixels: int = 100_000_000
    """Of all images of a request and all frames shown of clips together, width x height."""

    clip_seconds: float = 60
    """To decode a clip."""

    choices: int = 8
    """Answers to one request (`n`)."""

    answer_tokens: int = 512
    """Of an answer whose request sets no limit of its own."""

    header_bytes: int = 16 * 2**10
    """Of a request's line and headers."""

    header_seconds: float = 15
    """From a connection to the end of its request's headers."""

    body_seconds: float = 60
    """To send a request's body."""

    answer_seconds: float = 600
    """From the end of the request to the end of its answer."""

    fetch_seconds: float = 15
    """To fetch an image from a web address, redirects and all."""

    redirects: int = 3
    """Of a web address."""

    connections: int = 512
    """Open at a time."""

    grace_seconds: int = 30
    """For running answers to end once the server is asked to stop."""


@dataclass(frozen=True)
class ServerSettings:
    """How an endpoint is to behave."""

    token: str | None = None
    """That requests must bear; none: no one but this machine may ask."""

    allow_urls: bool = False
    """Whether images are fetched from web addresses."""

    limits: ServerLimits = field(default_factory=ServerLimits)


KINDS = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}
"""Status -> OpenAI's name for it; every other is an `invalid_request_error`."""

HEADERS = {
    401: {"WWW-Authenticate": "Bearer"},
    408: {"Connection": "close"},  # more of the body may come: it is read no further
    413: {"Connection": "close"},
}
"""Status -> headers that belong to it."""

REMEMBERED = 32
"""Latest requests that tell how long one takes."""


class RequestError(Exception):
    """A request that is answered with an error: what is wrong, and what to do.

    Args:
        status: of HTTP.
        message: one sentence for a person.
        code: one word for a program.
        param: dotted name of the request's field at fault.
        headers: beside those of its status.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.headers = HEADERS.get(status, {}) | (headers or {})

    def body(self) -> dict[str, Any]:
        """Write it as OpenAI does."""
        kind = KINDS.get(self.status, "invalid_request_error")
        about = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": about}


class Admission:
    """Counts the requests that are read, wait or run."""

    def __init__(self, places: int) -> None:
        self._slots = places
        self._seconds: deque[float] = deque(maxlen=REMEMBERED)
        self.taken = 0

    def admit(self) -> None:
        """Take a place.

        Raises:
            RequestError: there is none; it says when to come back, guessing that all places turn
                over once in the time of one request.
        """
        if self.taken >= self._slots:
            usual = sum(self._seconds) / len(self._seconds) if self._seconds else 1.0
            raise RequestError(
                429,
                f"{self._slots} requests wait or run already; come back in a moment",
                "queue_full",
                headers={"Retry-After": str(max(1, math.ceil(usual / self._slots)))},
            )
        self.taken += 1

    def release(self, seconds: float) -> None:
        """Count a place as free again, after so many seconds."""
        self.taken -= 1
        self._seconds.append(seconds)


class Telemetry:
    """The measures of one endpoint, apart from those of any other in the process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        counter = partial(Counter, registry=self.registry)
        times = partial(Histogram, buckets=SECONDS, registry=self.registry)
        self.requests = counter(
            "foveal_requests",
            "Requests for an answer, by how they ended; 499: the client left.",
            ["model", "status"],
        )
        self.refused = counter(
            "foveal_refused_requests", "Requests that no model was asked, by status.", ["status"]
        )
        self.prompt_tokens = counter(
            "foveal_prompt_tokens", "Tokens of prompts, pictures included.", ["model"]
        )
        self.answer_tokens = counter("foveal_answer_tokens", "Tokens written.", ["model"])
        self.first_token_seconds = times(
            "foveal_first_token_seconds", "From a request's arrival to its first token.", ["model"]
        )
        self.request_seconds = times(
            "foveal_request_seconds", "From a request's arrival to its end.", ["model"]
        )
