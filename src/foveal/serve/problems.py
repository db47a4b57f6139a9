"""Whatever a request can do wrong -> a status and the body that OpenAI's clients know."""

from typing import Any

KINDS = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}
"""Status -> OpenAI's name for it; every other is an `invalid_request_error`."""


class RequestError(Exception):
    """A request that is answered with an error: what is wrong, and what to do.

    Args:
        status: of HTTP.
        message: one sentence for a person.
        code: one word for a program.
        param: dotted name of the request's field at fault.
        retry_after_seconds: when to come back.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        retry_after_seconds: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.retry_after_seconds = retry_after_seconds

    def body(self) -> dict[str, Any]:
        """Write it as OpenAI does."""
        kind = KINDS.get(self.status, "invalid_request_error")
        about = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": about}

    def headers(self) -> dict[str, str]:
        """Name the headers that belong to it."""
        headers = {}
        if self.retry_after_seconds is not None:
            headers["Retry-After"] = str(self.retry_after_seconds)
        if self.status in (408, 413):  # more of the body may come: it is read no further
            headers["Connection"] = "close"
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return headers
