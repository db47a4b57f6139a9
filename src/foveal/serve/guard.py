"""Who may ask: bearers of the token; without one, people on this machine, and none of their pages.

A page of any other site that is open in somebody's browser can send requests to this machine. It
names its own site as the origin, or has let its name point here and is found out by the name.
"""

import hmac
import ipaddress
from urllib.parse import urlsplit

from fastapi import Request

from foveal.serve.problems import RequestError


def is_loopback(host: str) -> bool:
    """Tell whether a host name or address is this machine's own, reached by nobody else."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


class Guard:
    """Lets requests through or not.

    Args:
        token: that requests must bear; none: they must come from this machine.
    """

    def __init__(self, token: str | None) -> None:
        self._token = token

    def __call__(self, request: Request) -> None:
        """Check one request.

        Raises:
            RequestError: it may not ask.
        """
        self.check_origin(request)
        if self._token is None:
            self.check_name(request)
            return
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        # Headers are bytes, which the web framework shows as latin-1.
        is_right = hmac.compare_digest(given.strip().encode("latin-1"), self._token.encode())
        if kind.lower() != "bearer" or not is_right:
            raise RequestError(
                401, "give the server's token: Authorization: Bearer TOKEN", "invalid_api_key"
            )

    @staticmethod
    def check_origin(request: Request) -> None:
        """Refuse what a page of another site sends."""
        origin = request.headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
            raise RequestError(403, "pages of other sites may not ask here", "foreign_origin")

    @staticmethod
    def check_name(request: Request) -> None:
        """Refuse a name that is not this machine's, though it leads here."""
        name = urlsplit("//" + request.headers.get("host", "")).hostname
        if name is None or not is_loopback(name):
            raise RequestError(
                403, "without a token this server answers to localhost alone", "foreign_name"
            )
