"""What one request may cost, and how long anything may take."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ServerLimits:
    """ServerLimits of an endpoint; the defaults suit one GPU and people who know each other."""

    places: int = 64
    """Requests that are read, wait or run at a time; the next one is told to come back."""

    running: int = 16
    """Answers that are written at a time; the others wait."""

    kept_pictures: int = 8
    """Prompts' beginnings with pictures that stay read, for the next question about them."""

    body_bytes: int = 32 * 2**20
    """Of a request, pictures and all."""

    picture_bytes: int = 16 * 2**20
    """Of one picture or clip, as a file."""

    pictures: int = 64
    """Of a request, clips counted in."""

    pixels: int = 100_000_000
    """Of all pictures of a request and all frames shown of clips together, width x height."""

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
    """To fetch a picture from a web address, redirects and all."""

    redirects: int = 3
    """Of a web address."""

    connections: int = 512
    """Open at a time."""

    grace_seconds: int = 30
    """For running answers to end once the server is asked to stop."""
